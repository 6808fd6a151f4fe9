"""Logical replication slots, over an ordinary connection.

Every function takes a psycopg connection in any state that can run a query, and leaves its transaction to
the caller; driver errors other than those named pass through untranslated.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from infra.postgres.connect import connect
from infra.service import log
from infra.service.signals import bounded
from infra.settings.model import DatabaseSettings, Settings
from producers.source.transactions import Awaited
from schemas.errors import HeadraceError, Interrupted, Refused, UsageError
from schemas.positions import Lsn, parse_lsn

PLUGIN: Final = "pgoutput"
_NAME: Final = re.compile(r"[a-z0-9_]{1,63}")
_FAILOVER_SINCE: Final = 170_000
"""The first server version whose slots can be synchronized to a standby, and that says why one is lost."""


_ALTER_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.1

_READ: Final = """
SELECT s.*, EXISTS (SELECT FROM pg_stat_replication r WHERE r.pid = s.active_pid) AS streaming
  FROM pg_replication_slots s WHERE s.slot_name = %s
"""
"""As a whole row, since columns differ between versions."""


class SlotExists(Refused):
    """Drop the old slot if nothing reads it any more, or choose another name."""


class SlotsExhausted(HeadraceError):
    """Drop a slot that is no longer used, or raise max_replication_slots and restart the server."""


class SlotAwaited(HeadraceError):
    """End those transactions (COMMIT PREPARED or ROLLBACK PREPARED ends a prepared one), then run it again."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """A slot as pg_replication_slots shows it.

    `confirmed_flush` is where a reader goes on; the log from `restart_lsn` on is retained (None once lost).
    `safe_wal_size` is the bytes of log that may still be written before the slot may be lost, None without
    a limit. `invalidation_reason` is None while the slot is usable; before 17 there is only `wal_status`.
    `inactive_since` is when its last reader went, None while there is one and before 17. `made` is false while a
    process still makes it: it tells nothing of what is written meanwhile, and is gone if that process fails.
    `streaming` says that the process that has it is a stream, not a function of SQL. A `temporary` one goes with the
    process that has it, and with the server: on a standby it is one whose synchronization is not complete. One of
    `two_phase` sends a prepared transaction before anybody knows whether it commits.
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
    made: bool = True
    temporary: bool = False
    streaming: bool = False
    two_phase: bool = False

    @property
    def ready(self) -> bool:
        """Whether a producer may rely on it: every commit from `confirmed_flush` on will be read from it.

        It is pgoutput's, is there for good, has not lost anything, and no session still makes or moves it.
        """
        there = self.made and not self.temporary and not self.lost and self.confirmed_flush is not None
        return there and self.plugin == PLUGIN and not self.in_hand

    @property
    def in_hand(self) -> bool:
        """Whether a session makes it, or reads it by a function of SQL."""
        return self.active_pid is not None and not self.streaming

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


def create(
    connection: psycopg.Connection[Any],
    slot: str,
    *,
    failover: bool,
    stop: threading.Event | None = None,
    seconds: float | None = None,
) -> Lsn:
    """Create a pgoutput slot and return its consistent point: it tells every later commit, no earlier one.

    Waits until every transaction that runs now has ended, also a prepared one, and says in the log which these are;
    until `stop` is set (Interrupted) or `seconds` are over (SlotAwaited, which names them). Either leaves no slot, and
    neither does a process that dies: the server looks whether its client is still there. One of that name that another
    session is making is waited for in place of making it, likewise. `failover` (a standby may take the slot over) is
    left off on a server before 17, which has no such thing. Must come before any write of its transaction. Raises
    SlotExists, SlotsExhausted.
    """
    check_name(slot)
    stop = stop or threading.Event()
    awaited = Awaited(connection, lambda names: log.get(slot=slot).warning("the slot waits", **{log.REASON: names}))
    deadline = None if seconds is None else time.monotonic() + seconds
    with awaited:
        if (made := _made_by_another(connection, slot, awaited, stop, deadline)) is not None:
            return made
        end_with_the_client(connection)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            with bounded(connection, stop, seconds=left, meanwhile=lambda: awaited.look(connection.info.backend_pid)):
                return _create(connection, slot, failover=failover)
        except errors.QueryCanceled as error:
            if deadline is None or time.monotonic() < deadline:
                raise
            raise SlotAwaited(f"slot {slot} was not made: {awaited}") from error


def _create(connection: psycopg.Connection[Any], slot: str, *, failover: bool) -> Lsn:
    arguments: list[sql.Composable] = [sql.Literal(slot), sql.Literal(PLUGIN)]
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


def _made_by_another(
    connection: psycopg.Connection[Any], slot: str, awaited: Awaited, stop: threading.Event, deadline: float | None
) -> Lsn | None:
    """Wait while another session makes the slot, such as that of a process that was killed; return where it begins.

    None when there is no such session, or it made none.
    """
    state = read(connection, slot)
    if state is None or state.made:
        return None
    while state is not None and (not state.made or state.in_hand):
        if stop.wait(_POLL_SECONDS):
            raise Interrupted(f"stopped while another session made slot {slot}")
        if state.active_pid is not None:
            awaited.look(state.active_pid)
        if deadline is not None and time.monotonic() > deadline:
            raise SlotAwaited(f"slot {slot} is still being made by process {state.active_pid}: {awaited}")
        state = read(connection, slot)
    if state is not None and not state.ready:
        raise SlotExists(f"slot {slot} exists already, and is none to read from ({state.plugin})")
    return None if state is None else state.confirmed_flush


def end_with_the_client(connection: psycopg.Connection[Any]) -> None:
    """Have the server end what this session waits for once its client is gone; it would not notice by itself.

    A slot whose client was killed would else be made in the end, for nobody. Some systems cannot see that.
    """
    with contextlib.suppress(errors.InvalidParameterValue), connection.transaction():
        connection.execute("SET client_connection_check_interval = '500ms'")


def take_over(connection: psycopg.Connection[Any], source: str, slot: str) -> None:
    """Make `slot` a copy of slot `source`, from the same position on, which a standby may take over in its turn.

    For the new owner's producer, of the slot that was synchronized from the old one's. Waits for no transaction. Killed
    anywhere, it leaves no slot, or one that only lacks the last: see `ensure_failover`. Raises SlotExists.
    """
    try:
        connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (source, check_name(slot)))
    except errors.DuplicateObject as error:
        raise SlotExists(f"slot {slot} exists already") from error
    ensure_failover(connection, slot)


def ensure_failover(connection: psycopg.Connection[Any], slot: str) -> bool:
    """Let a standby keep the slot in step from now on, so that the next failover has it; return whether that changed.

    Nothing is done for one that is in use or not there, and on a server before 17. A copied slot never has it, nor has
    one of a server that was upgraded. Takes the right to replicate.
    """
    state = read(connection, slot)
    if connection.info.server_version < _FAILOVER_SINCE or state is None or state.failover or state.active_pid:
        return False
    # Only a replication connection may.
    dsn = make_conninfo(connection.info.dsn, password=connection.info.password or None, replication="database")
    command = sql.SQL("ALTER_REPLICATION_SLOT {} (FAILOVER true)").format(sql.Identifier(slot))
    with connect(dsn, name=f"slot {slot}") as replication:
        # Should somebody have begun to read it by now, the server would wait for the end of that.
        with bounded(replication, threading.Event(), seconds=_ALTER_SECONDS):
            replication.execute(command)
    return True


def read(connection: psycopg.Connection[Any], slot: str) -> SlotState | None:
    """Return the slot's state, or None when there is no slot of that name."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_READ, (slot,)).fetchone()
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
        made=row["plugin"] is None or row["confirmed_flush_lsn"] is not None,
        temporary=row["temporary"],
        streaming=row["streaming"],
        two_phase=bool(row.get("two_phase")),
    )


def skip(connection: psycopg.Connection[Any], slot: str) -> Lsn:
    """Move a slot that nobody reads to the end of the log as it is now; return where it begins.

    What is committed before that is never told.
    """
    row = connection.execute(
        "SELECT end_lsn::text FROM pg_replication_slot_advance(%s, pg_current_wal_lsn())", (slot,)
    ).fetchone()
    assert row is not None
    return parse_lsn(row[0])


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


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else parse_lsn(text)


def slot_name(settings: Settings, source: str, database: DatabaseSettings) -> str:
    """Return the slot of a source: the settings' own, else one made of prefix and source."""
    return database.slot or f"{settings.prefix}_{source}".lower().replace("-", "_")


def system_identifier(connection: psycopg.Connection[Any]) -> str:
    """Return what tells one PostgreSQL cluster (with its physical copies) from every other."""
    row = connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
    assert row is not None
    return str(row[0])
