"""Any identifier in a smaller alphabet, so that no two meet: topics and Avro allow less than PostgreSQL.

A character outside the alphabet becomes `_xHH_`, one for each of its UTF-8 bytes. An underscore that would
read as the start of such an escape is itself escaped, so `unescape` gives back every name.
"""

from __future__ import annotations

import re
from typing import Final

_FORBIDDEN: Final = re.compile(r"[^A-Za-z0-9_]|_(?=x[0-9A-F]{2})")
_ESCAPE: Final = re.compile(rb"_x([0-9A-F]{2})_")


def _escaped(found: re.Match[str]) -> str:
    return "".join(f"_x{byte:02X}_" for byte in found[0].encode())


def escape(name: str) -> str:
    """Return `name` in letters, digits and underscores; two names never give the same result."""
    return _FORBIDDEN.sub(_escaped, name)


def escape_identifier(name: str) -> str:
    """Return `name` as an Avro name: as `escape`, and a digit in front is escaped too."""
    escaped = escape(name)
    return f"_x{ord(escaped[0]):02X}_{escaped[1:]}" if escaped[:1].isdigit() else escaped


def unescape(escaped: str) -> str:
    """Return the name that `escape` or `escape_identifier` was given.

    Raises ValueError when it was neither's result.
    """
    return _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), escaped.encode()).decode()
