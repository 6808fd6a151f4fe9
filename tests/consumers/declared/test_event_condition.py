"""A prefilter skips an event only if its condition is known to be false."""

from __future__ import annotations

import pytest

from consumers.declared.event_condition import mentions, parse
from consumers.declared.expression import NotAnExpression
from schemas.events import UNCHANGED


@pytest.mark.parametrize(
    ("text", "value", "passes"),
    [
        ("a IS NULL", None, True),
        ("a IS NULL", "", False),
        ("a is not null", None, False),
        ("a is not null", 0, True),
        ("a = 'x'", "x", True),
        ("a = 'x'", "X", False),
        ("a = 'x'", None, False),
        ("a <> 'x'", "y", True),
        ("a != 'x'", "x", False),
        ("a <> 'x'", None, False),
        ("a = 2", 2, True),
        ("a = -2", 2, False),
        ("a = true", True, True),
        ("a = true", False, False),
        ("a IN ('x', 'y''z')", "y'z", True),
        ("a IN ('x', 'y')", "z", False),
        ("a NOT IN (1, 2)", 3, True),
        ("a NOT IN (1, 2)", 2, False),
        ("a NOT IN (1, 2)", None, False),
        ("a = 'x'", UNCHANGED, True),
        ("a IS NULL", UNCHANGED, True),
    ],
)
def test_comparison_holds_as_in_sql(text: str, value: object, passes: bool) -> None:
    (term,) = parse(text)
    assert term.may_hold({"a": value}) is passes


def test_comparisons_are_joined_by_and() -> None:
    assert [term.column for term in parse("a = 1 AND \"B\" IS NULL and c IN ('x')")] == ["a", "B", "c"]


@pytest.mark.parametrize(
    "text",
    ["a = b", "a = 1 OR b = 2", "lower(a) = 'x'", "a > 1", "a = 1.5", "a = E'x'", "a", "NOT a", "a = 1 AND", "a IN ()",
     "a IS TRUE", "a = 'x' || 'y'", "a = now()", "a = - 'x'", "a LIKE 'x'"],
)  # fmt: skip
def test_condition_that_an_event_does_not_decide_is_refused(text: str) -> None:
    with pytest.raises(NotAnExpression, match="use column = 'text'"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("a = 1 AND b IN ('x', 'y')", ("x", "y")),
        ("a <> 'x'", ()),
        ("a IS NULL", ()),
        ("a = ''", ()),
        ("a IN ('x', 1)", ()),
    ],
)
def test_texts_that_every_passing_event_has_are_its_mentions(text: str, texts: tuple[str, ...]) -> None:
    assert mentions(parse(text)) == texts
