"""Names in the catalog of a database in SQL_ASCII, which may have bytes of any encoding.

One such name, also of a table that is not captured, would end every query that lists it. So its bytes are kept, as
surrogates, and only a captured table that has one is refused.
"""

from __future__ import annotations

import json
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.types.json import set_json_loads


class _AnyText(Loader):
    """Keeps bytes that are not UTF-8."""

    def load(self, data: Buffer) -> str:
        return _decoded(data)


def accept_any_names(connection: psycopg.Connection[Any]) -> None:
    """Let a session read all names. A statement that has one which is not UTF-8 raises UnicodeEncodeError."""
    if connection.info.parameter_status("server_encoding") != "SQL_ASCII":
        return
    for kind in ("name", "text", "varchar", "bpchar"):
        connection.adapters.register_loader(kind, _AnyText)
    set_json_loads(lambda data: json.loads(data if isinstance(data, str) else _decoded(data)), connection)


def is_text(*names: str) -> bool:
    """Whether all names are UTF-8."""
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(name: str) -> str:
    """Return a name as it can be logged and recorded, with its bytes written as \\xe9."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _decoded(data: Buffer) -> str:
    return bytes(data).decode(errors="surrogateescape")
