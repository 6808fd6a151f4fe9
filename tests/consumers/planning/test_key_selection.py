"""Parsing of `--where` and `--keys`."""

from __future__ import annotations

import pytest

from consumers.planning.key_selection import named, parse_selection
from consumers.planning.key_values import TEXT, KeyKind
from schemas.errors import UsageError


@pytest.mark.parametrize(
    ("where", "keys", "found"),
    [
        (["id=5,7"], [], {"id": ["5", "7"]}),
        (["id=5, 7 ,8"], [], {"id": ["5", "7", "8"]}),
        (["id=5", "id=7"], [], {"id": ["5", "7"]}),
        ([], ["7", "9,10"], {"id": ["7", "9", "10"]}),
    ],
)
def test_lists_of_integers_are_parsed(where: list[str], keys: list[str], found: dict[str, list[str]]) -> None:
    assert named(parse_selection(where, keys), {"id": KeyKind("long")}) == found


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ('k="a,b",c', ["a,b", "c"]),
        ('k="a,b"', ["a,b"]),
        ('k=a"b,c', ['a"b', "c"]),
        ('k="say ""x"", twice", " y"', ['say "x", twice', " y"]),
        ('k=""', [""]),
        ("k='a", ["'a"]),
        ("k=a=b", ["a=b"]),
    ],
)
def test_strings_with_commas_and_quotes_are_parsed(where: str, found: list[str]) -> None:
    assert named(parse_selection([where], []), {"k": TEXT}) == {"k": found}


@pytest.mark.parametrize("wrong", ["id", "=5", "id=", 'id="5'])
def test_malformed_selection_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"--where .* (is not COLUMN=VALUE|has an unclosed quote)"):
        parse_selection([wrong], [])


def test_unknown_key_column_is_refused() -> None:
    with pytest.raises(UsageError, match="no key column name; key columns: id"):
        named({"name": ["x"]}, {"id": TEXT})
    with pytest.raises(UsageError, match="the key has 2 columns: a, b; use --where, not --keys"):
        named({"": ["x"]}, {"a": TEXT, "b": TEXT})
