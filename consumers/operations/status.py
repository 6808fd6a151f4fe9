"""Collects the document of `headrace status`: migrations, sources, and gitlab schemas that were given away.

Its fields are a contract: fields may be added, but not renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypedDict, get_args

import psycopg

from consumers.contract import counting
from consumers.contract.counting import Count
from consumers.contract.discovery import Broken
from consumers.contract.external import WorkStatus
from consumers.contract.migration import Migration, Shared
from consumers.dead_letters.given_up import read_work_status
from consumers.delivery.topics import source_topics
from consumers.ledger.progress import Place
from consumers.operations import catalog
from consumers.operations.group_admin import members
from infra.guard import given_away
from infra.kafka import topics
from infra.postgres import connect, control, standbys
from infra.settings.model import Settings
from infra.state.positions import SourceState, StreamState, read_sources
from schemas.errors import HeadraceError, OwnershipMoved, UsageError
from schemas.positions import format_lsn
from schemas.topics import group_name

_FRESH_SECONDS: Final = 15.0
"""A rate that was not updated for so long belongs to a consumer that is gone."""
_COUNT_MS: Final = 2_000
"""How long the server may count the remaining rows; after that the planner's estimate is reported."""


State = Literal["waiting", "running", "paused", "throttled", "caught_up", "complete", "given_up", "failed"]
STATES: Final = get_args(State)


class PartitionStatus(TypedDict):
    """One partition: the ledger's offset and the topic's end."""

    topic: str
    partition: int
    offset: int
    end_offset: int


class MigrationStatus(TypedDict):
    """One migration."""

    name: str
    gitlab_schema: str
    database: str
    run: int
    state: str
    paused: bool
    complete: bool
    applied: int
    skipped: int
    skip_reasons: dict[str, int]
    dead_letters: int
    given_up: int
    reported: int
    reached: Mapping[str, str]
    remaining: int | None
    remaining_estimated: bool
    rate: float
    eta_seconds: float | None
    members: list[str]
    throttled_by: str | None
    partitions: list[PartitionStatus]


def gather(settings: Settings) -> dict[str, Any]:
    """Return the document of `status --json`.

    A migration whose database is not in the settings is left out; one whose database does not respond has `error`; one
    that runs once per database is listed once per database. Raises BrokerUnavailable if Kafka does not respond.
    """
    migrations: list[dict[str, Any]] = []
    broken = catalog.broken(settings)
    for name, kind in sorted(catalog.migrations(settings).items()):
        if name in broken:
            continue
        if kind.shared is Shared.PER_DATABASE and settings.migration(name).database is None:
            listing = catalog.listing(settings, kind.gitlab_schema)
            migrations += [_migration(settings, kind, database) for database in listing]
            continue
        try:
            database = catalog.target_database(settings, kind)
        except UsageError as error:
            if name in settings.migrations:
                raise
            del error
            continue
        except OwnershipMoved as error:
            # During a switchover no consumer writes: the records of one of the two databases are shown.
            database = catalog.listing(settings, kind.gitlab_schema)[0]
            migrations.append({**_migration(settings, kind, database), "state": "waiting", "error": str(error)})
            continue
        migrations.append(_migration(settings, kind, database))
    migrations += [_broken(entry) for _, entry in sorted(broken.items())]
    sources = read_sources(settings)
    return {
        "migrations": migrations,
        "sources": [_source(settings, name, state) for name, state in sorted(sources.items())],
        "given_away": [each.document() for each in given_away.survey(settings, sources)],
    }


def _broken(entry: Broken) -> dict[str, Any]:
    """Return the status of a migration that cannot run, with the error in its file."""
    nothing: MigrationStatus = {
        "name": entry.name,
        "gitlab_schema": "",
        "database": "",
        "run": 0,
        "state": "failed",
        "paused": False,
        "complete": False,
        "applied": 0,
        "skipped": 0,
        "skip_reasons": {},
        "dead_letters": 0,
        "given_up": 0,
        "reported": 0,
        "reached": {},
        "remaining": None,
        "remaining_estimated": False,
        "rate": 0.0,
        "eta_seconds": None,
        "members": [],
        "throttled_by": None,
        "partitions": [],
    }
    return {**nothing, "error": str(entry)}


def _migration(settings: Settings, kind: type[Migration], database: str) -> dict[str, Any]:
    alive = members(settings.kafka, group_name(settings.prefix, kind.name))
    ends = {
        Place(topic, partition): end
        for topic in source_topics(settings, kind, database)
        for partition, end in topics.end_offsets(settings.kafka, topic).items()
    }
    found = Recorded()
    error: str | None = None
    try:
        with connect.session(settings.database(database), name="status") as connection:
            control.require_prefix(connection, database, settings.prefix)
            found = recorded(connection, kind.name)
            migration = kind.configure(settings.migration(kind.name))
            found.work = read_work_status(connection, migration)
            remaining = _remaining(connection, migration)
            found.remaining, found.remaining_estimated = remaining.rows, remaining.estimated
    except HeadraceError as mistake:
        error = str(mistake)
    partitions: list[PartitionStatus] = [
        {
            "topic": place.topic,
            "partition": place.partition,
            "offset": found.offsets.get(place, 0),
            "end_offset": end,
        }
        for place, end in sorted(ends.items())
    ]
    left = sum(max(0, entry["end_offset"] - entry["offset"]) for entry in partitions)
    rate = found.rate if alive else 0.0
    status: MigrationStatus = {
        "name": kind.name,
        "gitlab_schema": kind.gitlab_schema,
        "database": database,
        "run": found.run,
        "state": state_of(found, alive=bool(alive), topics=bool(partitions), left=left),
        "paused": found.paused,
        "complete": found.complete and not found.work.given_up,
        "applied": found.applied,
        "skipped": found.skipped,
        "skip_reasons": found.skip_reasons,
        "dead_letters": found.dead_letters,
        "given_up": found.work.given_up,
        "reported": found.work.reported,
        "reached": found.work.reached,
        "remaining": found.remaining,
        "remaining_estimated": found.remaining_estimated,
        "rate": round(rate, 1),
        "eta_seconds": 0.0 if partitions and left == 0 else round(left / rate, 1) if rate > 0 else None,
        "members": alive,
        "throttled_by": found.throttled_by if alive else None,
        "partitions": partitions,
    }
    return {**status, **({"error": error} if error else {})}


class Recorded:
    """The database's records of a migration; the defaults are those before its first run."""

    def __init__(self) -> None:
        self.run = 0
        self.paused = False
        self.complete = False
        self.failed: str | None = None
        self.offsets: dict[Place, int] = {}
        self.applied = self.skipped = self.dead_letters = 0
        self.skip_reasons: dict[str, int] = {}
        self.throttled_by: str | None = None
        self.rate = 0.0
        self.members: set[str] = set()
        """The consumers that had a partition last, `host:pid` each."""
        self.remaining: int | None = None
        self.remaining_estimated = False
        self.work = WorkStatus()


def state_of(found: Recorded, *, alive: bool, topics: bool, left: int) -> State:
    """Return the state of a migration.

    A pause by an operator has precedence over a complete run, and stays in force for the next run.
    """
    if found.failed:
        return "failed"
    if found.paused:
        return "paused"
    if found.complete:
        return "given_up" if found.work.given_up else "complete"
    if topics and found.offsets and left == 0:
        return "caught_up"
    if alive and found.throttled_by:
        return "throttled"
    return "running" if alive and found.offsets else "waiting"


def recorded(connection: psycopg.Connection[Any], name: str) -> Recorded:
    """Return what the database of `connection` has recorded of a migration."""
    found = Recorded()
    if connection.execute("SELECT to_regclass('headrace.progress')").fetchone() == (None,):
        return found
    row = connection.execute(
        "SELECT run, paused, completed_at IS NOT NULL, failed FROM headrace.migrations WHERE name = %s", (name,)
    ).fetchone()
    if row is None:
        return found
    found.run, found.paused, found.complete, found.failed = row
    throttle = connection.execute(
        "SELECT reason FROM headrace.throttles WHERE migration = %s AND seen_at > now() - make_interval(secs => %s)"
        " ORDER BY seen_at DESC LIMIT 1",
        (name, _FRESH_SECONDS),
    ).fetchone()
    found.throttled_by = throttle[0] if throttle else None
    for topic, partition, offset, applied, skipped, dead_letters, reasons, member, rate in connection.execute(
        "SELECT topic, partition, next_offset, applied, skipped, dead_letters, skip_reasons, member,"
        " CASE WHEN updated_at > now() - make_interval(secs => %s) THEN rate ELSE 0 END"
        " FROM headrace.progress WHERE migration = %s AND run = %s",
        (_FRESH_SECONDS, name, found.run),
    ):
        found.offsets[Place(topic, partition)] = offset
        found.applied += applied
        found.skipped += skipped
        found.dead_letters += dead_letters
        found.rate += rate
        found.members |= {member} - {""}
        for reason, count in reasons.items():
            found.skip_reasons[reason] = found.skip_reasons.get(reason, 0) + count
    return found


def _remaining(connection: psycopg.Connection[Any], migration: Migration) -> Count:
    try:
        return counting.count(connection, migration, limit_ms=_COUNT_MS)
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
        return Count(None)
    except Exception as error:
        # A bug in one migration must not hide the others.
        if connection.closed or isinstance(error, HeadraceError):
            raise
        raise HeadraceError(counting.failed(error), remedy=f"see `remaining` of {type(migration).__name__}") from error


def _source(settings: Settings, name: str, state: SourceState) -> dict[str, Any]:
    stream = state.stream
    return {
        "name": name,
        "slot": stream.slot if stream is not None else None,
        "lsn": format_lsn(stream.commit_lsn) if stream is not None else None,
        **_seen_from_its_database(settings, name, stream),
        "snapshot": _snapshot(state.snapshots),
        "snapshot_throttled_by": stream.snapshot_throttled_by if stream is not None else None,
    }


_SEEN: Final = """
    SELECT greatest(0, pg_wal_lsn_diff(now_at.lsn, %(confirmed)s::pg_lsn))::bigint,
           round(greatest(0, extract(epoch FROM clock_timestamp()) - %(ts_ms)s / 1000.0), 1)::float8,
           coalesce(CASE WHEN s.confirmed_flush_lsn IS NOT NULL THEN s.wal_status END, 'missing'),
           greatest(0, pg_wal_lsn_diff(now_at.lsn, s.restart_lsn))::bigint,
           round(CASE WHEN s.wal_status = 'lost' THEN 0
                      ELSE greatest(0, s.safe_wal_size) / nullif(%(rate)s::numeric, 0) END)::bigint
      FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                        ELSE pg_current_wal_lsn() END) now_at(lsn)
      LEFT JOIN pg_replication_slots s ON s.slot_name = %(slot)s
"""
_SEEN_FIELDS: Final = ("lag_bytes", "lag_seconds", "slot_status", "retained_bytes", "lost_in_seconds")


def _seen_from_its_database(settings: Settings, name: str, stream: StreamState | None) -> dict[str, Any]:
    """Return the stream's lag and the WAL that its slot retains; each None if the database does not respond.

    `lost_in_seconds` is the time until the slot is lost if no process reads it, at the WAL rate that its producer
    measured; `waits_for` lists the standbys whose confirmation the server waits for (infra.postgres.standbys).
    """
    unknown: dict[str, Any] = {**dict.fromkeys(_SEEN_FIELDS), "waits_for": []}
    if name not in settings.databases or stream is None:
        return unknown
    known = {
        "confirmed": format_lsn(stream.confirmed_lsn),
        "ts_ms": stream.ts_ms,
        "slot": stream.slot,
        "rate": stream.log_bytes_per_second,
    }
    try:
        with connect.session(settings.databases[name], name="status") as connection:
            row = connection.execute(_SEEN, known).fetchone()
            awaited = standbys.awaited(connection, stream.slot)
    except HeadraceError:
        return unknown
    return {**dict(zip(_SEEN_FIELDS, row, strict=True)), "waits_for": awaited} if row else unknown


def _snapshot(snapshots: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the snapshot in progress, else the sum over all that are done; None without snapshots."""
    if not snapshots:
        return None
    under_way = [snapshot for snapshot in snapshots.values() if snapshot.under_way]
    shown = under_way or list(snapshots.values())
    return {
        "table": shown[0].table if len(shown) == 1 else f"{len(shown)} tables",
        "chunks_done": sum(snapshot.chunks_done for snapshot in shown),
        "chunks": sum(max(snapshot.chunks, snapshot.chunks_done) for snapshot in shown),
    }
