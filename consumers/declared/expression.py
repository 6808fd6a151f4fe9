"""Reads SQL expressions of the settings far enough to know that each is one expression and nothing else.

Pure. Stricter than PostgreSQL: what could end, hide or outlive the place where the expression is put is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from schemas.lazy_dataclass import dataclass

_SPACE: Final = re.compile(r"[ \t\r\n]+")
_WORD: Final = re.compile(r"[A-Za-z_\x80-\U0010ffff][\w$]*")
_QUOTED: Final = re.compile(r'"(?:[^"\x00]|"")+"')
_STRING: Final = re.compile(r"'(?:[^'\x00]|'')*'")
_ESCAPED: Final = re.compile(r"'(?:[^'\\\x00]|''|\\[^\x00])*'")
_NUMBER: Final = re.compile(r"\d[\w.]*|\.\d[\w.]*")
_CLOSES: Final = {")": "(", "]": "["}
_QUERIES: Final = frozenset({"select", "table", "with"})
"""Words that start a query. All are reserved, so none is a column's name; `with` is also part of a type's name."""


class NotAnExpression(ValueError):
    """The text is not one SQL expression; the message says why, as the end of a sentence."""


@dataclass(frozen=True)
class Token:
    """`kind` is word, quoted, string, escaped (an E'…' string), number or sign; `text` has no quotes around it."""

    kind: str
    text: str


def tokens(text: str) -> list[Token]:
    """Return the tokens of one SQL expression. Raises NotAnExpression."""
    found = list(_scanned(text))
    if not found:
        raise NotAnExpression("is empty")
    _require_one(found)
    return found


def called(found: list[Token]) -> Iterator[tuple[str | None, str]]:
    """Yield (schema or None, name) of what is followed by an opening parenthesis: functions, and some keywords."""
    for index, token in enumerate(found[:-1]):
        if token.kind in ("word", "quoted") and found[index + 1] == _OPENING:
            qualified = index >= 2 and found[index - 1] == _DOT
            yield (found[index - 2].text if qualified else None), token.text


_OPENING: Final = Token("sign", "(")
_DOT: Final = Token("sign", ".")


def _scanned(text: str) -> Iterator[Token]:
    at = 0
    while at < len(text):
        token, at = _next(text, at)
        if token is not None:
            yield token


def _next(text: str, at: int) -> tuple[Token | None, int]:
    """Return the token at `at`, None for blanks, and the position after it."""
    if (match := _SPACE.match(text, at)) is not None:
        return None, match.end()
    if text.startswith(("--", "/*"), at):
        raise NotAnExpression("has a comment")
    if text[at] in "'\"":
        return _within_quotes(text, at, *(("string", _STRING) if text[at] == "'" else ("quoted", _QUOTED)))
    if (match := _WORD.match(text, at)) is not None:
        if text.startswith("'", match.end()) and match[0].lower() == "e":
            return _within_quotes(text, match.end(), "escaped", _ESCAPED)
        return Token("word", match[0].lower()), match.end()
    if (match := _NUMBER.match(text, at)) is not None:
        return Token("number", match[0]), match.end()
    return Token("sign", _sign(text[at])), at + 1


def _within_quotes(text: str, at: int, kind: str, form: re.Pattern[str]) -> tuple[Token, int]:
    match = form.match(text, at)
    if match is None:
        raise NotAnExpression("has an unclosed quote")
    quote = text[at]
    return Token(kind, match[0][1:-1].replace(2 * quote, quote)), match.end()


def _sign(character: str) -> str:
    if character == ";":
        raise NotAnExpression("has a semicolon")
    if character == "$":
        raise NotAnExpression("has a dollar sign outside of quotes")
    if not character.isprintable():
        raise NotAnExpression("has a control character")
    return character


def _require_one(found: list[Token]) -> None:
    """Raise NotAnExpression unless the brackets match and neither a query nor a list begins."""
    opened: list[str] = []
    for index, token in enumerate(found):
        following = found[index + 1] if index + 1 < len(found) else None
        if token.kind == "word" and _is_query(found, index, following):
            raise NotAnExpression("has a subquery, and only the row itself may be read")
        if token.kind != "sign":
            continue
        if token.text in "([":
            opened.append(token.text)
        elif token.text in _CLOSES:
            if not opened or opened.pop() != _CLOSES[token.text]:
                raise NotAnExpression(f"has a {token.text} that closes nothing")
        elif token.text == "," and not opened:
            raise NotAnExpression("has a comma outside of parentheses")
    if opened:
        raise NotAnExpression(f"has an unclosed {opened[-1]}")


def _is_query(found: list[Token], index: int, following: Token | None) -> bool:
    word = found[index].text
    if word == "values":
        return following == _OPENING
    opens = index == 0 or found[index - 1] == _OPENING
    return word == "select" or (word in _QUERIES and opens)
