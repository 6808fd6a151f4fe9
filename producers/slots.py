"""Logical replication slots, over an ordinary connection, and the heartbeats that keep them moving.

Every function takes a psycopg connection in any state that can run a query, and leaves its transaction to
the caller; driver errors other than those named pass through untranslated.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import errors, sql
from psycopg.rows import dict_row

from schemas.errors import HeadraceError, Refused, UsageError
from schemas.positions import Lsn, parse_lsn

PLUGIN: Final = "pgoutput"
_NAME: Final = re.compile(r"[a-z0-9_]{1,63}")
_FAILOVER_SINCE: Final = 170_000
"""The first server version whose slots can be synchronized to a standby, and that says why one is lost."""


class SlotExists(Refused):
    """Drop the old slot if nothing reads it any more, or choose another name."""


class SlotsExhausted(HeadraceError):
    """Drop a slot that is no longer used, or raise max_replication_slots and restart the server."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """A slot as pg_replication_slots shows it.

    `confirmed_flush` is where a reader goes on; the log from `restart_lsn` on is retained (None once lost).
    `safe_wal_size` is the bytes of log that may still be written before the slot may be lost, None without
    a limit. `invalidation_reason` is None while the slot is usable; before 17 there is only `wal_status`.
    `inactive_since` is when its last reader went, None while there is one and before 17.
    """

    slot: str
    plugin: str | None
    database: str | None
    active_pid: int | None
    confirmed_flush: Lsn | None
    restart_lsn: Lsn | None
    wal_status: str | None
    safe_wal_size: int | None
    invalidation_reason: str | None
    failover: bool
    synced: bool
    inactive_since: datetime | None = None

    @property
    def lost(self) -> bool:
        """Whether what it should have kept is gone."""
        return self.wal_status == "lost" or self.invalidation_reason is not None


def check_name(slot: str) -> str:
    """Return `slot`; raises UsageError when no slot can be called that.

    The server would cut a longer name to 63 bytes, and so open another slot than was asked for.
    """
    if _NAME.fullmatch(slot) is None:
        raise UsageError(
            f"{slot!r} is not a slot name", remedy="use 1 to 63 lower-case letters, digits and underscores"
        )
    return slot


def create(connection: psycopg.Connection[Any], slot: str, *, failover: bool) -> Lsn:
    """Create a pgoutput slot and return its consistent point: it tells every later commit, no earlier one.

    Waits until every transaction that runs now has ended. `failover` (a standby may take the slot over) is
    left off on a server before 17, which has no such thing. Must come before any write of its transaction.
    Raises SlotExists, SlotsExhausted.
    """
    arguments: list[sql.Composable] = [sql.Literal(check_name(slot)), sql.Literal(PLUGIN)]
    if failover and connection.info.server_version >= _FAILOVER_SINCE:
        arguments.append(sql.SQL("failover => true"))
    query = sql.SQL("SELECT lsn::text FROM pg_create_logical_replication_slot({})")
    try:
        row = connection.execute(query.format(sql.SQL(", ").join(arguments))).fetchone()
    except errors.DuplicateObject as error:
        raise SlotExists(f"slot {slot} exists already") from error
    except errors.ConfigurationLimitExceeded as error:
        raise SlotsExhausted(f"slot {slot} could not be created, every slot is in use") from error
    assert row is not None
    return parse_lsn(row[0])


def read(connection: psycopg.Connection[Any], slot: str) -> SlotState | None:
    """Return the slot's state, or None when there is no slot of that name."""
    with connection.cursor(row_factory=dict_row) as cursor:
        # As a whole row, since columns differ between versions.
        row = cursor.execute("SELECT * FROM pg_replication_slots WHERE slot_name = %s", (slot,)).fetchone()
    if row is None:
        return None
    return SlotState(
        slot=row["slot_name"],
        plugin=row["plugin"],
        database=row["database"],
        active_pid=row["active_pid"],
        confirmed_flush=_lsn(row["confirmed_flush_lsn"]),
        restart_lsn=_lsn(row["restart_lsn"]),
        wal_status=row["wal_status"],
        safe_wal_size=row["safe_wal_size"],
        invalidation_reason=row.get("invalidation_reason"),
        failover=bool(row.get("failover")),
        synced=bool(row.get("synced")),
        inactive_since=row.get("inactive_since"),
    )


def drop(connection: psycopg.Connection[Any], slot: str) -> bool:
    """Drop the slot; return whether there was one.

    Raises Refused while a process reads it. What it retained, and its place in the log, are gone for good.
    """
    try:
        connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    except errors.UndefinedObject:
        return False
    except errors.ObjectInUse as error:
        raise Refused(f"slot {slot} is being read", remedy="stop its producer first") from error
    return True


def emit_heartbeat(connection: psycopg.Connection[Any], prefix: str = "headrace", *, transactional: bool = True) -> Lsn:
    """Write a logical message whose content is this machine's clock (milliseconds since 1970, as text).

    Return its LSN. A transactional one is streamed when the caller's transaction commits, with that commit's
    LSN, and so can be confirmed like any change, on a database where nothing else is written. One that is
    not transactional is streamed at once, though nothing makes the server flush it soon.
    """
    clock = str(time.time_ns() // 1_000_000)
    query = "SELECT pg_logical_emit_message(%s, %s, %s::text)::text"
    row = connection.execute(query, (transactional, prefix, clock)).fetchone()
    assert row is not None
    return parse_lsn(row[0])


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else parse_lsn(text)
