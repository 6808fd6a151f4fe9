"""Whatever could end, hide or outlive the place of an expression is refused before a server sees it."""

from __future__ import annotations

import pytest

from consumers.declared.expression import NotAnExpression, Token, called, tokens


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("true) OR (true", "has a ) that closes nothing"),
        ("1; DROP TABLE x", "has a semicolon"),
        ("true --", "has a comment"),
        ("true -- )", "has a comment"),
        ("a /* b", "has a comment"),
        ("$$a", "has a dollar sign outside of quotes"),
        ("$$a$$ = b", "has a dollar sign outside of quotes"),
        ("a = $1", "has a dollar sign outside of quotes"),
        ("(a", "has an unclosed ("),
        ("a[1", r"has an unclosed \["),
        ("(a]", "has a ] that closes nothing"),
        ("a, b", "has a comma outside of parentheses"),
        ("a = 'b", "has an unclosed quote"),
        ("a = 'b''", "has an unclosed quote"),
        (r"a = E'b\'", "has an unclosed quote"),
        ('"a', "has an unclosed quote"),
        ("a = '\0'", "has an unclosed quote"),
        ("a \x01 b", "has a control character"),
        ("  ", "is empty"),
        ("a = (SELECT 1)", "has a subquery"),
        ("EXISTS (select FROM public.others)", "has a subquery"),
        ("a IN (VALUES (1))", "has a subquery"),
        ("a IN (TABLE public.others)", "has a subquery"),
        ("a IN (WITH x AS (VALUES (1)) TABLE x)", "has a subquery"),
    ],
)
def test_text_that_is_not_one_expression_is_refused(text: str, said: str) -> None:
    with pytest.raises(NotAnExpression, match=said.replace("(", r"\(").replace(")", r"\)")):
        tokens(text)


@pytest.mark.parametrize(
    "text",
    [
        "email <> lower(email)",
        'note = \'a; -- (select $1\' AND "odd"" (name" IS NULL',
        r"note ~ E'\'\\(' OR note = '\'",
        "at > '2026-01-01'::timestamp with time zone",
        "coalesce(tags[1:2], ARRAY['a', 'b'])",
        'a - -1 >= .5 AND "select" IS NOT NULL AND public.values > 1',
        "größe % 2 = 0",
    ],
)
def test_expression_of_one_row_is_accepted(text: str) -> None:
    assert tokens(text)


def test_tokens_have_names_and_values_without_quotes() -> None:
    assert tokens("\"It\"\"s\" = 'it''s' AND ID") == [
        Token("quoted", 'It"s'), Token("sign", "="), Token("string", "it's"), Token("word", "and"), Token("word", "id"),
    ]  # fmt: skip


def test_calls_are_named_with_their_schema() -> None:
    found = set(called(tokens('lower(a) = public."F"(b) AND c IN (1) AND (d)')))
    assert found == {(None, "lower"), ("public", "F"), (None, "in"), (None, "and")}
