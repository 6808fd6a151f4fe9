"""What an error of PostgreSQL's means for the one table that was being read: read it later, stop it, or neither."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from infra.postgres.connect import hidden_rows, one_line
from producers.source.schema_changes import TableStopped
from schemas.errors import HeadraceError

_PASSING: Final = frozenset({"55P03", "40001", "40P01", "57014"})
"""A lock that another session holds or waits for, and what a session is ended for that may be begun again."""
_RESOURCES: Final = "53"
"""SQL states of a server that lacks memory, disk or a file's size just now."""
_WITHOUT_VALUES: Final = ("42", "XX", "0A", "54", "58", "3F", "22021", "22P05")
"""SQL states whose messages name objects, files and bytes of a character; those of others may have a row's values."""


class TableBusy(HeadraceError):
    """Nothing is to be done: the table is read once no other session is in its way."""


def judged(connection: psycopg.Connection[Any], error: psycopg.Error | UnicodeError) -> TableBusy | TableStopped | None:
    """Return what to raise for an error of a statement that read one table.

    TableBusy where the same statement may work a moment later, TableStopped where an operator has to put something
    right first. None where the error is of the connection, and so of every table.
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
    """Return why a table stops that has bytes which no reader of its topic could take for text."""
    told = f"{what} has bytes that are not UTF-8, and its database (SQL_ASCII) does not say which encoding they are in"
    return told.strip()
