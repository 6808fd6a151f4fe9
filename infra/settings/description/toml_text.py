"""Writes keys and values as TOML, for single lines of a settings file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence


def toml_value(value: str | float | Sequence[str | float]) -> str:
    """Return a string, a number, a boolean or a list of them as TOML, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # TOML's basic strings have JSON's escapes, and no DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[{', '.join(map(toml_value, value))}]"


def toml_key(name: str) -> str:
    """Return a key, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)
