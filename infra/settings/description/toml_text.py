"""Writes keys and values as TOML, for single lines of a settings file."""

from __future__ import annotations

import re
from collections.abc import Sequence


def toml_value(value: str | float | Sequence[str | float]) -> str:
    """Return a string, a number, a boolean or a list of them as TOML, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return f'"{"".join(map(_escaped, value))}"'
    return f"[{', '.join(map(toml_value, value))}]"


def toml_key(name: str) -> str:
    """Return a key, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)


def _escaped(character: str) -> str:
    """Return a character of a basic string; what a terminal would not print is a number."""
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
