"""Reads what orders reads of tables and changes in the stream: a snapshot with a WAL position, and transaction ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import psycopg

from schemas.positions import parse_lsn
from schemas.xid_snapshot import Moment, Snapshot

_MOMENT: Final = "SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text"
"""One query, so that the snapshot is taken before the WAL position is read."""


def current_moment(connection: psycopg.Connection[Any]) -> Moment:
    """Return the current snapshot, which is the transaction's at REPEATABLE READ, and a WAL position after it.

    Raises psycopg.errors.ObjectNotInPrerequisiteState on a standby.
    """
    return ask_moment(connection)()


def ask_moment(connection: psycopg.Connection[Any]) -> Callable[[], Moment]:
    """Ask what `current_moment` returns; call the result once the connection's pipeline has ended."""
    cursor = connection.execute(_MOMENT)

    def answer() -> Moment:
        row = cursor.fetchone()
        assert row is not None
        return Moment(Snapshot.parse(row[0]), parse_lsn(row[1]))

    return answer


def next_xid(connection: psycopg.Connection[Any]) -> int:
    """Return a transaction id above all that have begun. A snapshot's xmax is not: later ones may already run."""
    row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert row is not None
    return int(row[0])
