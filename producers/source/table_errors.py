"""Maps a PostgreSQL error from reading one table: retry later, stop the table, or neither."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from infra.postgres.connect import hidden_rows, one_line
from producers.source.schema_changes import TableStopped
from schemas.errors import HeadraceError

_PASSING: Final = frozenset({"55P03", "40001", "40P01", "57014"})
"""SQLSTATEs of locks held or awaited by another session, and of failures that a retry may not meet."""
_RESOURCES: Final = "53"
"""The SQLSTATE class of a server that lacks memory, disk space or other resources."""
_WITHOUT_VALUES: Final = ("42", "XX", "0A", "54", "58", "3F", "22021", "22P05")
"""SQLSTATEs whose messages name objects, files or bytes of a character; other messages may contain row values."""


class TableBusy(HeadraceError):
    """No action needed: the table is read once other sessions no longer block it."""


def judged(connection: psycopg.Connection[Any], error: psycopg.Error | UnicodeError) -> TableBusy | TableStopped | None:
    """Return the error to raise for a failed statement that read one table.

    TableBusy if a retry may succeed, TableStopped if an operator has to fix something first. None if the connection
    failed, which affects every table.
    """
    if isinstance(error, UnicodeError):
        return TableStopped(not_utf8("its key"))
    state = error.sqlstate or ""
    if connection.closed or not state or state.startswith(("08", "57P")):
        return None
    if state in _PASSING or state.startswith(_RESOURCES):
        return TableBusy(one_line(error))
    if (hidden := hidden_rows(error)) is not None:
        return TableStopped(hidden.problem)
    told = f": {one_line(error)}" if state.startswith(_WITHOUT_VALUES) else ""
    return TableStopped(f"PostgreSQL cannot read its rows{told} (SQLSTATE {state})")


def not_utf8(what: str) -> str:
    """Return why a table stops that has bytes which are not text in UTF-8."""
    told = f"{what} has bytes that are not UTF-8, and its database (SQL_ASCII) does not record their encoding"
    return told.strip()
