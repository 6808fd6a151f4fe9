"""Monitors a replication slot: the WAL that it retains, the rate of WAL growth, and when the slot is lost.

A forecast assumes that nothing reads the slot from now on, and errs on the early side.
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

import psycopg

from infra.postgres.connect import connect, translated
from infra.service import log, metrics
from infra.settings.database_login import Where
from infra.settings.model import Settings
from infra.state.positions import StreamState
from producers.source import slots
from producers.source.standby_watch import StandbyWatch
from schemas.errors import HeadraceError
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn, parse_lsn

_READING: Final = """
    SELECT (CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            ELSE pg_current_wal_insert_lsn() END)::text,
           extract(epoch FROM clock_timestamp())::float8,
           (SELECT nullif(setting::float8, 0) FROM pg_settings WHERE name = 'idle_replication_slot_timeout'),
           (SELECT setting FROM pg_settings WHERE name = 'data_directory'),
           (SELECT system_identifier::text FROM pg_control_system())
"""
_HELP: Final = "SELECT pg_log_standby_snapshot()"
_MAY_HELP: Final = "SELECT has_function_privilege('pg_catalog.pg_log_standby_snapshot()', 'EXECUTE')"
_HELP_SINCE: Final = 160_000
"""The first server version with pg_log_standby_snapshot(): a slot releases WAL at such a record of running
transactions, and the server writes one by itself only every 15 seconds."""

_WINDOW_SECONDS: Final = 600.0
_RECENT_SECONDS: Final = 60.0
_SHORTEST_SECONDS: Final = 0.5
"""The shortest time over which a rate is measured."""

WARN_SECONDS: Final = 3600.0
"""A slot that would be lost sooner than this is logged as a warning, once it retains half of what it may."""
_WARN_EVERY_SECONDS: Final = 60.0

_HURRY_SECONDS: Final = 0.2
"""The shortest time between two heartbeats, however fast the WAL grows."""

KEEP_SIZE: Final = "max_slot_wal_keep_size"
DISK: Final = "free space on the server's disk"
IDLE_TIMEOUT: Final = "idle_replication_slot_timeout"


@dataclass(frozen=True)
class Rate:
    """The rate of WAL growth, in bytes per second, measured over so many seconds."""

    bytes_per_second: float
    seconds: float


class WalGrowth:
    """Samples of the end of the WAL from the last ten minutes."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Lsn]] = deque()

    def add(self, at: float, written: Lsn) -> None:
        """Add the end of the WAL at a time in seconds; an end before the last one comes from another server."""
        if self._samples and (at < self._samples[-1][0] or written < self._samples[-1][1]):
            self._samples.clear()
        self._samples.append((at, written))
        while self._samples[0][0] < at - _WINDOW_SECONDS:
            self._samples.popleft()

    @property
    def rate(self) -> Rate | None:
        """The greater of the rates over the whole window and over the last minute; None before two samples."""
        if not self._samples:
            return None
        now, written = self._samples[-1]
        recent = next(sample for sample in self._samples if sample[0] >= now - _RECENT_SECONDS)
        rates = [
            Rate((written - lsn) / (now - at), now - at)
            for at, lsn in (self._samples[0], recent)
            if now - at >= _SHORTEST_SECONDS
        ]
        return max(rates, key=lambda rate: rate.bytes_per_second, default=None)


@dataclass(frozen=True)
class Reading:
    """The state of a slot and of its server's WAL at one moment.

    `at` is in seconds since 1970 by the server's clock, `idle_timeout` in seconds, `disk_free` in bytes; None: no such
    limit, or a disk on another machine.
    """

    slot: slots.SlotState
    written: Lsn
    at: float
    idle_timeout: float | None = None
    disk_free: int | None = None


@dataclass(frozen=True)
class Forecast:
    """When a slot is lost if nothing reads it from now on.

    `left_bytes` may still be written before `limit` (KEEP_SIZE or DISK) is reached. `seconds` is the time until then,
    or until the slot is lost for another `cause` (IDLE_TIMEOUT); None: unknown.
    """

    slot: str
    status: str
    active: bool
    retained_bytes: int
    left_bytes: int | None
    limit: str | None
    rate: Rate | None
    seconds: float | None
    cause: str | None

    @property
    def at_risk(self) -> bool:
        """Whether to warn the operator: the slot is nearly lost, and not because its reader lags for a moment."""
        if self.status in ("unreserved", "lost"):
            return True
        if self.seconds is None or self.seconds >= WARN_SECONDS:
            return False
        return not self.active or (self.left_bytes is not None and self.retained_bytes > self.left_bytes)

    def __str__(self) -> str:
        if self.status == "lost":
            return f"slot {self.slot} is lost"
        words = [f"slot {self.slot} retains {size(self.retained_bytes)} of WAL"]
        if self.left_bytes is not None:
            words.append(f"{size(max(0, self.left_bytes))} may still be written ({self.limit})")
        if self.status == "unreserved":
            words.append("the next checkpoint removes what it needs unless it is read at once")
        elif self.seconds is not None:
            # An active slot is lost only if its reader stops.
            end = "fills the disk" if self.cause == DISK else "is lost"
            words.append(f"{'without its reader' if self.active else 'unread'} it {end} in {duration(self.seconds)}")
            if self.cause != self.limit:
                words[-1] += f" ({self.cause})"
        if self.rate is not None:
            grows = f"WAL grows by {size(self.rate.bytes_per_second)}/s"
            words.append(f"{grows}, measured over {duration(self.rate.seconds)}")
        return "; ".join(words)

    def document(self, source: str) -> dict[str, Any]:
        """Return the forecast as `check --json` prints it."""
        return {
            "source": source,
            "slot": self.slot,
            "status": self.status,
            "active": self.active,
            "retained_bytes": self.retained_bytes,
            "left_bytes": self.left_bytes,
            "limit": self.limit,
            "bytes_per_second": round(self.rate.bytes_per_second) if self.rate else None,
            "measured_seconds": round(self.rate.seconds, 1) if self.rate else None,
            "lost_in_seconds": None if self.seconds is None else round(self.seconds),
            "cause": self.cause,
            "at_risk": self.at_risk,
        }


def read(connection: psycopg.Connection[Any], slot: str) -> Reading | None:
    """Return the current state of `slot`, None when it does not exist."""
    state = slots.read(connection, slot)
    if state is None:
        return None
    row = connection.execute(_READING).fetchone()
    assert row is not None
    written, at, idle_timeout, directory, system = row
    return Reading(state, parse_lsn(written), at, idle_timeout, _disk_free(directory, int(system)))


def _disk_free(directory: str | None, system: int) -> int | None:
    """Return the free bytes on the server's WAL disk, if it is on this machine and readable."""
    if directory is None:
        return None
    try:
        # The path may belong to another cluster on this machine: pg_control starts with the system identifier.
        with (Path(directory) / "global" / "pg_control").open("rb") as control:
            (found,) = struct.unpack("=Q", control.read(8))
        disk = os.statvfs(Path(directory) / "pg_wal")
    except (OSError, struct.error):
        return None
    return disk.f_bavail * disk.f_frsize if found == system else None


def forecast(reading: Reading, rate: Rate | None) -> Forecast:
    """Return when the slot is lost if WAL keeps growing at `rate`."""
    slot = reading.slot
    lost = slot.lost
    limits = {KEEP_SIZE: slot.safe_wal_size, DISK: reading.disk_free}
    known = {name: left for name, left in limits.items() if left is not None and not lost}
    limit = min(known, key=lambda name: known[name], default=None)
    left = known[limit] if limit else None
    ends: dict[str, float] = {}
    if limit is not None and left is not None and (left <= 0 or (rate and rate.bytes_per_second > 0)):
        ends[limit] = max(0, left) / rate.bytes_per_second if rate and rate.bytes_per_second > 0 else 0.0
    if reading.idle_timeout is not None and not slot.synced and not lost:
        # For an active slot the timeout starts now, as if its reader stopped.
        since = slot.inactive_since.timestamp() if slot.inactive_since and slot.active_pid is None else reading.at
        ends[IDLE_TIMEOUT] = max(0.0, since + reading.idle_timeout - reading.at)
    cause = min(ends, key=lambda name: ends[name], default=None)
    return Forecast(
        slot=slot.slot,
        status="lost" if lost else slot.wal_status or "reserved",
        active=slot.active_pid is not None,
        retained_bytes=0 if slot.restart_lsn is None else max(0, reading.written - slot.restart_lsn),
        left_bytes=left,
        limit=limit,
        rate=rate,
        seconds=0.0 if lost else ends[cause] if cause else None,
        cause=cause,
    )


def remembered(stream: StreamState | None, reading: Reading) -> Rate | None:
    """Return the WAL rate that a producer recorded, or the average since it stopped, whichever is greater.

    None when the time is too short to measure.
    """
    if stream is None or stream.ts_ms == 0:
        return None
    since = reading.at - stream.ts_ms / 1000
    written = reading.written - stream.commit_lsn
    rates = [Rate(written / since, since)] if since >= _RECENT_SECONDS and written >= 0 else []
    if stream.log_bytes_per_second is not None:
        rates.append(Rate(stream.log_bytes_per_second, stream.log_seconds))
    return max(rates, key=lambda rate: rate.bytes_per_second, default=None)


class SlotMonitor:
    """Monitors a producer's slot across its sessions: measures, warns, and helps the slot to release WAL."""

    def __init__(self, source: str, slot: str, bound: int, lines: log.Log) -> None:
        """`bound` is the number of WAL bytes that the slot should retain at most."""
        self._source = source
        self._slot = slot
        self._bound = bound
        self._log = lines
        self._growth = WalGrowth()
        self._warned = -_WARN_EVERY_SECONDS
        self._may_help: bool | None = None
        self._looked = 0.0
        self._seen = Lsn(0)
        self._standbys = StandbyWatch(source, slot, lines)

    @property
    def rate(self) -> Rate | None:
        """The rate of WAL growth, None until it is known."""
        return self._growth.rate

    def look(self, connection: psycopg.Connection[Any], passed: Lsn | None = None) -> Forecast | None:
        """Read the slot's state; return its forecast, None when it does not exist.

        Called with each heartbeat; `passed` is the stream's position, if there is a stream. When the slot retains a
        quarter of the bound, the server is asked to log its running transactions, so that the slot can release what is
        confirmed.
        """
        reading = read(connection, self._slot)
        if reading is None:
            return None
        self._standbys.look(connection, stalled=passed is not None and passed < self._seen)
        self._looked, self._seen = time.monotonic(), reading.written
        self._growth.add(reading.at, reading.written)
        found = forecast(reading, self.rate)
        metrics.RETAINED_WAL.labels(self._source).set(found.retained_bytes)
        metrics.CATALOG_XMIN_AGE.labels(self._source).set(reading.slot.catalog_xmin_age or 0)
        if passed is not None:
            metrics.LAG_BYTES.labels(self._source).set(max(0, reading.written - passed))
        if found.retained_bytes > self._bound // 4:
            self._help(connection)
        if found.at_risk and time.monotonic() >= self._warned + _WARN_EVERY_SECONDS:
            self._warned = time.monotonic()
            self._log.warning("slot at risk", **{log.REASON: str(found)})
        return found

    def hurries(self, received: Lsn) -> bool:
        """Whether a heartbeat is due early because much WAL was written since the last look.

        `received` is the position up to which the server has read the WAL. Other databases' WAL can only be confirmed
        after a commit of the source's own, and is released only after a record of the running transactions.
        """
        return received - self._seen > self._bound // 8 and time.monotonic() >= self._looked + _HURRY_SECONDS

    def _help(self, connection: psycopg.Connection[Any]) -> None:
        if self._may_help is None:
            able = connection.info.server_version >= _HELP_SINCE
            self._may_help = able and connection.execute(_MAY_HELP).fetchone() == (True,)
        if self._may_help:
            connection.execute(_HELP)

    def look_over_new_connection(self, where: Where) -> None:
        """Look at the slot over a new connection, while its producer waits for another server."""
        try:
            with connect(where, name=f"guard {self._source}", reading=True) as connection, translated(where):
                self.look(connection)
        except HeadraceError as error:
            self._log.debug("slot state not available", **{log.REASON: error.problem})


def slot_monitor_of(settings: Settings, source: str, lines: log.Log) -> SlotMonitor:
    """Return the slot monitor of `source`."""
    database = settings.database(source)
    slot = slots.slot_name(settings, source, database)
    return SlotMonitor(source, slot, database.snapshot.max_retained_wal_mb << 20, lines)


def size(count: float) -> str:
    """Return a number of bytes in readable form."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """Return a duration in readable form, in its two greatest units at most."""
    whole = round(seconds)
    for unit, step, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= step:
            rest = whole % step // part
            return f"{whole // step} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"
