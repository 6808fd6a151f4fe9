"""Escapes PostgreSQL identifiers for topics and Avro, which allow fewer characters, without collisions.

A character outside the alphabet becomes `_xHH_`, one per UTF-8 byte. An underscore that would start such an escape is
escaped too, so `unescape` restores every name.
"""

from __future__ import annotations

import re
from typing import Final

_FORBIDDEN: Final = re.compile(r"[^A-Za-z0-9_]|_(?=x[0-9A-F]{2})")
_ESCAPE: Final = re.compile(rb"_x([0-9A-F]{2})_")


def _escaped(found: re.Match[str]) -> str:
    return "".join(f"_x{byte:02X}_" for byte in found[0].encode())


def escape(name: str) -> str:
    """Return `name` with only letters, digits and underscores; the result is unique to the name."""
    return _FORBIDDEN.sub(_escaped, name)


def escape_identifier(name: str) -> str:
    """Return `name` as an Avro name: as `escape`, with a leading digit escaped too."""
    escaped = escape(name)
    return f"_x{ord(escaped[0]):02X}_{escaped[1:]}" if escaped[:1].isdigit() else escaped


def unescape(escaped: str) -> str:
    """Return the original name of a result of `escape` or `escape_identifier`.

    Raises ValueError for any other text.
    """
    return _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), escaped.encode()).decode()
