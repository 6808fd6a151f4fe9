r"""Reads fields of PostgreSQL's COPY text format: tab between fields, `\N` for null, backslash escapes.

Source: "COPY", section "Text Format", of PostgreSQL's documentation.
"""

from __future__ import annotations

import re
from typing import Final

NULL_FIELD: Final = rb"\N"
_ESCAPES: Final = {
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
    b"\\": b"\\",
}
_find_escape: Final = re.compile(rb"\\(.?)", re.DOTALL)


def _unescaped(found: re.Match[bytes]) -> bytes:
    try:
        return _ESCAPES[found[1]]
    except KeyError:
        raise ValueError("an escape that COPY does not write") from None


def unescape(field: bytes) -> bytes:
    r"""Return a field's text; not for `\N`.

    Raises ValueError for an escape that COPY TO never writes.
    """
    return _find_escape.sub(_unescaped, field)
