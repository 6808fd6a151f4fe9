"""The prefilter of a declared migration: a condition that is decided on the event's values, without a query.

A small part of SQL, so that the server can compare it with the guard: comparisons of a column with literals, joined by
AND. A value that the stream left out is unknown, and lets the event pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from consumers.declared.expression import NotAnExpression, Token, tokens
from schemas.events import UNCHANGED
from schemas.lazy_dataclass import dataclass

Literal = str | int | bool

_FORMS: Final = "use column = 'text', <>, IN (…), IS NULL and IS NOT NULL, joined by AND"
_WHOLE: Final = re.compile(r"\d+")


@dataclass(frozen=True)
class Term:
    """A comparison of `column`: with one of `values`, or with NULL if there are none; `negated` for <> and NOT."""

    column: str
    values: frozenset[Literal]
    negated: bool

    def may_hold(self, row: Mapping[str, object]) -> bool:
        """Return whether the comparison is true of the row, or its value is unknown."""
        value = row[self.column]
        if value is UNCHANGED:
            return True
        if not self.values:
            return (value is None) is not self.negated
        return value is not None and (value in self.values) is not self.negated


def parse(text: str) -> tuple[Term, ...]:
    """Return the comparisons of a prefilter, all of which have to hold. Raises NotAnExpression."""
    return tuple(_term(part) for part in _parts(tokens(text)))


def mentions(terms: Sequence[Term]) -> tuple[str, ...]:
    """Return texts of which every event that may hold has at least one (Migration.mentions); empty if unknown."""
    for term in terms:
        texts = tuple(sorted(value for value in term.values if isinstance(value, str)))
        if texts and not term.negated and len(texts) == len(term.values) and all(texts):
            return texts
    return ()


def _parts(found: list[Token]) -> list[list[Token]]:
    parts: list[list[Token]] = [[]]
    for token in found:
        if token == Token("word", "and"):
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _term(found: list[Token]) -> Term:
    if not found or found[0].kind not in ("word", "quoted"):
        raise NotAnExpression(f"has a part that does not begin with a column; {_FORMS}")
    column, rest = found[0].text, found[1:]
    words = [token.text for token in rest if token.kind in ("word", "sign")]
    if words in (["is", "null"], ["is", "not", "null"]) and len(words) == len(rest):
        return Term(column, frozenset(), "not" in words)
    for signs, negated in ((["="], False), (["<", ">"], True), (["!", "="], True)):
        if words[: len(signs)] == signs and [token.text for token in rest[: len(signs)]] == signs:
            return Term(column, frozenset([_literal(rest[len(signs) :])]), negated)
    for signs, negated in ((["in", "("], False), (["not", "in", "("], True)):
        if [token.text for token in rest[: len(signs)]] == signs and rest[-1].text == ")":
            return Term(column, frozenset(_listed(rest[len(signs) : -1])), negated)
    raise NotAnExpression(f"has a comparison of {column} that needs a query; {_FORMS}")


def _listed(found: list[Token]) -> list[Literal]:
    values: list[Literal] = []
    part: list[Token] = []
    for token in [*found, Token("sign", ",")]:
        if token == Token("sign", ","):
            values.append(_literal(part))
            part = []
        else:
            part.append(token)
    return values


def _literal(found: list[Token]) -> Literal:
    sign = -1 if found[:1] == [Token("sign", "-")] else 1
    rest = found[1:] if sign < 0 else found
    if len(rest) == 1:
        token = rest[0]
        if token.kind == "number" and _WHOLE.fullmatch(token.text):
            return sign * int(token.text)
        if sign > 0 and token.kind == "string":
            return token.text
        if sign > 0 and token.kind == "word" and token.text in ("true", "false"):
            return token.text == "true"
    raise NotAnExpression(f"compares with something else than a text, a whole number, true or false; {_FORMS}")
