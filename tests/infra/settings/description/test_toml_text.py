"""Keys and values are read from TOML as they were written."""

from __future__ import annotations

import tomllib

import pytest

from infra.settings.description.toml_text import toml_key, toml_value


@pytest.mark.parametrize(
    "value",
    [
        "", "a", 'a "b" \\ c', "two\nlines\t\x00\x1f\x7f\u0085\u2028é😀", "'''", 0, -5, 2**40, 0.5, 1e300, 1e-7,
        True, False, [], ["a", 'b"'], [1, 2.5],
    ],
)  # fmt: skip
def test_value_is_read_as_it_was(value: str | float | list[str | float]) -> None:
    text = toml_value(value)
    assert "\n" not in text
    assert tomllib.loads(f"k = {text}")["k"] == value
    assert type(tomllib.loads(f"k = {text}")["k"]) is type(value)


@pytest.mark.parametrize("name", ["a", "A-1_b", "", "a.b", "public.users", 'a "b"', "é", "a\nb"])
def test_key_is_read_as_it_was(name: str) -> None:
    assert tomllib.loads(f"{toml_key(name)} = 1") == {name: 1}
