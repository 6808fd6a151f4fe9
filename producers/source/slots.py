"""Manages logical replication slots over an ordinary connection.

Every function takes a psycopg connection that can run a query, and leaves its transaction to the caller. Driver errors
other than those named pass through unchanged.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
import zlib
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import errors, sql
from psycopg.rows import dict_row

from infra.postgres.connect import another, connect
from infra.service import log
from infra.service.signals import bounded
from infra.settings.model import DatabaseSettings, Settings
from producers.source.transactions import Awaited
from schemas.errors import HeadraceError, Interrupted, Refused, UsageError
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn, parse_lsn

PLUGIN: Final = "pgoutput"
_NAME: Final = re.compile(r"[a-z0-9_]{1,63}")
_FAILOVER_SINCE: Final = 170_000
"""The first server version that synchronizes slots to a standby and reports why a slot was invalidated."""


_SESSIONS: Final = 0x68647263
"""The class of the advisory locks that producers' sessions hold, one per slot: "hdrc" in ASCII."""

_HOLDERS: Final = """
SELECT pid FROM pg_locks
 WHERE locktype = 'advisory' AND classid = %s::oid AND objid = %s::oid AND objsubid = 2 AND granted
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

_ALTER_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.1

_READ: Final = """
SELECT s.*, age(s.catalog_xmin) AS catalog_xmin_age,
       EXISTS (SELECT FROM pg_stat_replication r WHERE r.pid = s.active_pid) AS streaming
  FROM pg_replication_slots s WHERE s.slot_name = %s
"""
"""The complete row, since its columns differ between versions."""


class SlotExists(Refused):
    """Drop the old slot if no process reads it, or choose another name."""


class SlotsExhausted(HeadraceError):
    """Drop a slot that is no longer used, or raise max_replication_slots and restart the server."""


class SlotAwaited(HeadraceError):
    """End those transactions (COMMIT PREPARED or ROLLBACK PREPARED ends a prepared one), then run it again."""


@dataclass(frozen=True)
class SlotState:
    """A slot as pg_replication_slots shows it.

    A reader resumes at `confirmed_flush`; WAL from `restart_lsn` on is retained (None once lost). `safe_wal_size` is
    the bytes of WAL that may still be written before the slot may be lost, None without a limit. `invalidation_reason`
    is None while the slot is usable; before 17 there is only `wal_status`. `inactive_since` is when its last reader
    disconnected, None while it is active and before 17. `made` is false while a process is creating it: it does not
    send what is written meanwhile, and is dropped if that process fails. `streaming`: its active process is a
    walsender, not a SQL function. A `temporary` slot is dropped with its session or at a restart of the server; on a
    standby it is one whose synchronization is not complete. A `two_phase` slot sends a prepared transaction before it
    commits. `catalog_xmin_age` is the number of transactions since the oldest one whose catalog rows VACUUM has to keep
    for the slot, None without one.
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
    catalog_xmin_age: int | None = None

    @property
    def ready(self) -> bool:
        """Whether a producer may rely on it to send every commit from `confirmed_flush` on.

        It uses pgoutput, is permanent, has lost nothing, and no session is creating or advancing it.
        """
        there = self.made and not self.temporary and not self.lost and self.confirmed_flush is not None
        return there and self.plugin == PLUGIN and not self.in_hand

    @property
    def in_hand(self) -> bool:
        """Whether a session is creating it, or reading it by a SQL function."""
        return self.active_pid is not None and not self.streaming

    @property
    def lost(self) -> bool:
        """Whether WAL that it should have retained is gone."""
        return self.wal_status == "lost" or self.invalidation_reason is not None


def check_name(slot: str) -> str:
    """Return `slot`; raises UsageError if that is not a valid slot name.

    The server would truncate a longer name to 63 bytes, and so open another slot.
    """
    if _NAME.fullmatch(slot) is None:
        raise UsageError(
            f"{slot!r} is not a valid slot name", remedy="use 1 to 63 lower-case letters, digits and underscores"
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
    """Create a pgoutput slot and return its consistent point: it sends every later commit and no earlier one.

    Waits until every current transaction has ended, including prepared ones, and logs them; until `stop` is set
    (Interrupted) or after `seconds` (SlotAwaited, which names them). Neither leaves a slot, nor does a killed process:
    the server checks whether its client is still connected. If another session is already creating a slot of that name,
    waits for that instead. `failover` (the slot is synchronized to standbys) is ignored before PostgreSQL 17, which
    lacks it. Must come before any write of its transaction. Raises SlotExists, SlotsExhausted.
    """
    check_name(slot)
    stop = stop or threading.Event()
    awaited = Awaited(
        connection, lambda names: log.get(slot=slot).warning("slot waits for transactions", **{log.REASON: names})
    )
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
            raise SlotAwaited(f"slot {slot} was not created: {awaited}") from error


def _create(connection: psycopg.Connection[Any], slot: str, *, failover: bool) -> Lsn:
    arguments: list[sql.Composable] = [sql.Literal(slot), sql.Literal(PLUGIN)]
    if failover and connection.info.server_version >= _FAILOVER_SINCE:
        arguments.append(sql.SQL("failover => true"))
    query = sql.SQL("SELECT lsn::text FROM pg_create_logical_replication_slot({})")
    try:
        row = connection.execute(query.format(sql.SQL(", ").join(arguments))).fetchone()
    except errors.DuplicateObject as error:
        raise SlotExists(f"slot {slot} already exists") from error
    except errors.ConfigurationLimitExceeded as error:
        raise SlotsExhausted(f"slot {slot} could not be created: every slot is in use") from error
    assert row is not None
    return parse_lsn(row[0])


def _made_by_another(
    connection: psycopg.Connection[Any], slot: str, awaited: Awaited, stop: threading.Event, deadline: float | None
) -> Lsn | None:
    """Wait while another session, such as a killed process's, creates the slot; return its start position.

    None if there is no such session, or it failed.
    """
    state = read(connection, slot)
    if state is None or state.made:
        return None
    while state is not None and (not state.made or state.in_hand):
        if stop.wait(_POLL_SECONDS):
            raise Interrupted(f"stopped while another session was creating slot {slot}")
        if state.active_pid is not None:
            awaited.look(state.active_pid)
        if deadline is not None and time.monotonic() > deadline:
            raise SlotAwaited(f"slot {slot} is still being created by process {state.active_pid}: {awaited}")
        state = read(connection, slot)
    if state is not None and not state.ready:
        raise SlotExists(f"slot {slot} already exists and is not usable (plugin {state.plugin})")
    return None if state is None else state.confirmed_flush


def end_with_the_client(connection: psycopg.Connection[Any]) -> None:
    """Have the server end this session's waits once its client is gone, which it does not notice by default.

    Otherwise it would still create the slot of a killed client. Some operating systems do not support this.
    """
    with contextlib.suppress(errors.InvalidParameterValue), connection.transaction():
        connection.execute("SET client_connection_check_interval = '500ms'")


def take_over(connection: psycopg.Connection[Any], source: str, slot: str) -> None:
    """Create `slot` as a copy of slot `source` at the same position, and enable failover for it.

    For the new owner's producer, from the slot that was synchronized from the old owner. Waits for no transaction. If
    killed, it leaves no slot, or one that only lacks failover: see `ensure_failover`. Raises SlotExists.
    """
    try:
        connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (source, check_name(slot)))
    except errors.DuplicateObject as error:
        raise SlotExists(f"slot {slot} already exists") from error
    ensure_failover(connection, slot)


def ensure_failover(connection: psycopg.Connection[Any], slot: str) -> bool:
    """Enable failover for the slot, so that standbys synchronize it; return whether that changed it.

    Does nothing if the slot is in use or missing, or before PostgreSQL 17. A copied slot never has it, nor does a slot
    of an upgraded server. Requires REPLICATION.
    """
    state = read(connection, slot)
    if connection.info.server_version < _FAILOVER_SINCE or state is None or state.failover or state.active_pid:
        return False
    # Only a replication connection can.
    command = sql.SQL("ALTER_REPLICATION_SLOT {} (FAILOVER true)").format(sql.Identifier(slot))
    with connect(another(connection, replication="database"), name=f"slot {slot}") as replication:
        # If another process has started reading it by now, the server waits for that to end.
        with bounded(replication, threading.Event(), seconds=_ALTER_SECONDS):
            replication.execute(command)
    return True


def read(connection: psycopg.Connection[Any], slot: str) -> SlotState | None:
    """Return the slot's state, None if it does not exist."""
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
        catalog_xmin_age=row["catalog_xmin_age"],
    )


def skip(connection: psycopg.Connection[Any], slot: str) -> Lsn:
    """Advance an inactive slot to the current end of WAL; return its new position.

    It never sends commits before that.
    """
    row = connection.execute(
        "SELECT end_lsn::text FROM pg_replication_slot_advance(%s, pg_current_wal_lsn())", (slot,)
    ).fetchone()
    assert row is not None
    return parse_lsn(row[0])


def drop(connection: psycopg.Connection[Any], slot: str) -> bool:
    """Drop the slot; return whether it existed.

    Raises Refused while a process reads it. Its position and the WAL that it retained are lost.
    """
    try:
        connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    except errors.UndefinedObject:
        return False
    except errors.ObjectInUse as error:
        raise Refused(f"slot {slot} is being read", remedy="stop its producer first") from error
    return True


def hold_session(connection: psycopg.Connection[Any], slot: str) -> bool:
    """Make this the session that copies for a slot, until it ends; return False while another one is."""
    return connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (_SESSIONS, _lock_of(slot))).fetchone() == (True,)


def sessions_of(connection: psycopg.Connection[Any], slot: str) -> list[int]:
    """Return the process ids of the sessions that copy for a slot; none while no producer uses it.

    The slot may still have a reader then: the server notices only later that a producer is gone.
    """
    return [pid for (pid,) in connection.execute(_HOLDERS, (_SESSIONS, _lock_of(slot) % (1 << 32))).fetchall()]


def _lock_of(slot: str) -> int:
    return zlib.crc32(slot.encode()) - (1 << 31)


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else parse_lsn(text)


def slot_name(settings: Settings, source: str, database: DatabaseSettings) -> str:
    """Return the slot name of a source: from the settings, else from prefix and source."""
    return database.slot or f"{settings.prefix}_{source}".lower().replace("-", "_")


def system_identifier(connection: psycopg.Connection[Any]) -> str:
    """Return the identifier of a PostgreSQL cluster, shared by its physical copies."""
    row = connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
    assert row is not None
    return str(row[0])
