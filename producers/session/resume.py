"""Decides where a producer resumes, from slot, WAL and recorded position; refuses a start that would skip changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import psycopg
from psycopg import sql

from infra.kafka.topics import partition_counts, with_records
from infra.postgres.connect import another, connect
from infra.settings.model import Settings
from infra.state.positions import SnapshotState, SourceState, StreamState
from producers.source import slots
from producers.source.gaps import SilentGap, publication_gap, start_over_with
from producers.source.publication import Publication, edited, read_publication, replaced
from producers.source.slots import system_identifier
from producers.source.table_keys import spread
from producers.source.tables import CapturedTable, captured_tables
from producers.source.writability import refused_writes
from schemas.errors import Refused
from schemas.gitlab_schemas import UnmappedTable
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn, format_lsn, parse_lsn

_WHY_LOST: Final = {
    "wal_removed": "raise max_slot_wal_keep_size, or keep its producer running",
    "idle_timeout": "raise idle_replication_slot_timeout, or keep its producer running",
    "rows_removed": "set hot_standby_feedback = on on the standby that had the slot",
    "wal_level_insufficient": "set wal_level = 'logical' and restart PostgreSQL",
}
"""invalidation_reason → how to prevent it."""


@dataclass(frozen=True)
class ServerWal:
    """A server's WAL: its database system, timeline, end, and where it left each earlier timeline.

    A promotion or a recovery from a backup starts a timeline, which lacks what the earlier one has after that position.
    """

    system: str
    timeline: int
    written: Lsn
    parted: Mapping[int, Lsn]


def server_wal(connection: psycopg.Connection[Any], recorded: StreamState | None) -> ServerWal:
    """Return the WAL state of a primary; its timeline history is queried only when `recorded` needs it."""
    row = connection.execute(
        "SELECT ('x' || left(pg_walfile_name(lsn), 8))::bit(32)::int, lsn::text FROM pg_current_wal_insert_lsn() lsn"
    ).fetchone()
    assert row is not None
    timeline, written = int(row[0]), parse_lsn(row[1])
    parted: Mapping[int, Lsn] = {}
    if recorded is not None and recorded.timeline not in (0, timeline) and timeline > 1:
        parted = _history(connection, timeline)
    return ServerWal(system_identifier(connection), timeline, written, parted)


def _history(connection: psycopg.Connection[Any], timeline: int) -> dict[int, Lsn]:
    """Return earlier timeline → where it was left; only a replication connection can query that."""
    with connect(another(connection, replication="database"), name="history") as replication:
        row = replication.execute(sql.SQL("TIMELINE_HISTORY {}").format(timeline)).fetchone()
    assert row is not None
    text = row[1] if isinstance(row[1], str) else bytes(row[1]).decode()
    fields = (line.split() for line in text.splitlines() if line[:1].isdigit())
    return {int(number): parse_lsn(lsn) for number, lsn, *_ in fields}


def _refuse_other_wal(stream: StreamState, server: ServerWal) -> None:
    """Raise SilentGap unless the server's WAL has everything recorded, so that the next change comes after it.

    It may lack some after a failover to a standby that lagged, or after a restore from a backup. After a failover to a
    standby that had everything the producer continues.
    """
    if stream.system_identifier != server.system:
        raise SilentGap(
            f"the topics of {stream.source} come from database system {stream.system_identifier},"
            f" but this server is {server.system}",
            remedy=f"correct databases.{stream.source}.dsn, or {start_over_with(stream.source)}",
        )
    recorded = format_lsn(stream.confirmed_lsn)
    left = server.parted.get(stream.timeline)
    if stream.timeline in (0, server.timeline):
        if server.written < stream.confirmed_lsn:
            raise SilentGap(
                f"the topics of {stream.source} are at {recorded}, after the end of the server's WAL at"
                f" {format_lsn(server.written)}: the server was reset, for example restored from a backup",
                remedy=start_over_with(stream.source),
            )
    elif left is None:
        raise SilentGap(
            f"the topics of {stream.source} are on timeline {stream.timeline}, but this server is on timeline"
            f" {server.timeline} and was never on it: a failover has left this server behind",
            remedy=f"correct databases.{stream.source}.dsn, or, if no other server is left,"
            f" {start_over_with(stream.source)}",
        )
    elif left < stream.confirmed_lsn or left <= stream.commit_lsn:
        raise SilentGap(
            f"the topics of {stream.source} are at {recorded} on timeline {stream.timeline}, which this server left"
            f" at {format_lsn(left)}: it was promoted or restored without the last changes",
            remedy=start_over_with(stream.source),
        )


def refuse_gaps(state: SourceState, slot: slots.SlotState | None, name: str, server: ServerWal) -> None:
    """Raise SilentGap, naming the positions, unless WAL, slot and recorded position are consistent.

    They are consistent when there is neither slot nor record, when a slot has no record yet, or when the slot is at or
    before the recorded position, in a WAL that has everything recorded. Everything else would silently skip changes.
    `server` must be read after `state`: the WAL may have grown meanwhile.
    """
    stream = state.stream
    if stream is not None:
        _refuse_other_wal(stream, server)
    if slot is not None and slot.lost:
        again = _WHY_LOST.get(slot.invalidation_reason or "wal_removed", "see the server's log for the reason")
        first = start_over_with(stream.source) if stream else f"SELECT pg_drop_replication_slot('{name}')"
        raise SilentGap(
            f"slot {name} was invalidated ({slot.invalidation_reason or slot.wal_status}): its changes are lost",
            remedy=f"{first}; to prevent it: {again}",
        )
    if stream is None:
        return
    recorded = format_lsn(stream.confirmed_lsn)
    if slot is not None and not slot.made:
        raise SilentGap(
            f"the topics of {stream.source} are at {recorded}, but slot {name} is only now being created by process"
            f" {slot.active_pid}",
            remedy=start_over_with(stream.source),
        )
    if slot is None and stream.timeline not in (0, server.timeline):
        raise SilentGap(
            f"the topics of {stream.source} are at {recorded}, but slot {name} had not been synchronized to this"
            " server when it was promoted",
            remedy=f"{start_over_with(stream.source)}; to keep it at the next failover: set sync_replication_slots = on"
            " and hot_standby_feedback = on on the standby",
        )
    if slot is None:
        raise SilentGap(
            f"the topics of {stream.source} are at {recorded}, but slot {name} no longer exists",
            remedy=start_over_with(stream.source),
        )
    if slot.confirmed_flush is not None and slot.confirmed_flush > stream.confirmed_lsn:
        raise SilentGap(
            f"slot {name} is at {format_lsn(slot.confirmed_flush)}, ahead of the topics at {recorded}:"
            " another reader has advanced it",
            remedy=start_over_with(stream.source),
        )


def refuse_other_publication(source: str, name: str, state: SourceState, publication: Publication | None) -> None:
    """Raise SilentGap when the publication was replaced: the stream may lack changes of every recorded table."""
    for snapshot in state.snapshots.values():
        counts = not snapshot.from_scratch and not snapshot.stopped
        if counts and (what := replaced(snapshot.published, publication)) is not None:
            raise publication_gap(source, name, what)


def current_snapshots(
    settings: Settings,
    source: str,
    state: SourceState,
    tables: tuple[CapturedTable, ...],
    publication: Publication | None,
    created: Collection[str] = (),
) -> dict[str, SnapshotState]:
    """Return table → progress of its snapshot; a table whose topic is empty is left out, to be snapshotted.

    `created` are topics that this start created. On a source's first start they are known to be empty, and Kafka is not
    asked: it answers once it has made their files, which for a thousand topics takes it many seconds.

    Raises SilentGap for a topic that has records but no recorded snapshot, since it may lack any change, and for one
    whose table was removed from the publication, since changes since then are unknown.
    """
    current: dict[str, SnapshotState] = {}
    first = state.stream is None and not state.snapshots
    filled = with_records(settings.kafka, {table.topic for table in tables} - ({*created} if first else set()))
    for table in tables:
        if table.topic not in filled:
            continue
        recorded = state.snapshots.get(table.name)
        remedy = f"re-snapshot it with `headrace snapshot {table.name} --from-scratch`"
        if state.stream is None:
            remedy = start_over_with(source)  # a source that has never been read accepts no request
        if recorded is not None and recorded.from_scratch:
            current[table.name] = recorded
            continue
        if recorded is None or recorded.topic != table.topic:
            raise SilentGap(
                f"topic {table.topic} has records, but no snapshot of table {table.name} is recorded",
                remedy=remedy,
            )
        if publication is None or table.name not in publication.tables:
            raise SilentGap(
                f"topic {table.topic} has records, but table {table.name} was removed from the publication since",
                remedy=remedy,
            )
        current[table.name] = recorded
    return current


def stopped_tables(
    connection: psycopg.Connection[Any], settings: Settings, source: str, state: SourceState
) -> dict[str, SnapshotState]:
    """Return the recorded tables that cannot be published, by name, each with the reason in `stopped`.

    These are tables that a producer stopped, and tables that can no longer be captured. A table that was stopped before
    its topic had a record is not among them if it can be captured now: it is snapshotted.
    """
    database = settings.database(source)
    filled = with_records(settings.kafka, [snapshot.topic for snapshot in state.snapshots.values()])
    recorded = {name: snapshot for name, snapshot in state.snapshots.items() if database.captures(name)}
    begun = {name: snapshot for name, snapshot in recorded.items() if snapshot.topic in filled}
    stopped = {name: snapshot for name, snapshot in begun.items() if snapshot.stopped and not snapshot.from_scratch}
    reasons: dict[str, str] = {}
    counts = partition_counts(settings.kafka) if begun else {}
    for name, snapshot in begun.items():
        before, now = snapshot.topic_partitions, counts.get(snapshot.topic)
        if name not in stopped and not snapshot.from_scratch and before and now and before != now:
            stopped[name] = snapshot.model_copy(update={"stopped": spread(snapshot.topic, before, now)})
    try:
        tables = list(captured_tables(connection, source, database, settings.prefix, leave_out=stopped))
    except Refused:
        tables = []
        for name in recorded.keys() - stopped.keys():
            alone = database.model_copy(update={"tables": (name,)})
            try:
                tables += captured_tables(connection, source, alone, settings.prefix)
            except UnmappedTable:
                continue  # an error in the settings, which the start refuses: no change must be skipped for it
            except Refused as error:
                reasons[name] = error.problem
    refused = refused_writes(connection, database.publication, [table.relation.oid for table in tables])
    reasons |= {table.name: refused[table.relation.oid] for table in tables if table.relation.oid in refused}
    publication = read_publication(connection, database.publication)
    for name in begun.keys() - stopped.keys() - reasons.keys():
        snapshot = begun[name]
        if snapshot.from_scratch or replaced(snapshot.published, publication) is not None:
            continue  # refuse_other_publication refuses the whole source
        if (reason := edited(snapshot.published, name, publication)) is not None:
            reasons[name] = reason
    stopped |= {
        name: recorded[name].model_copy(update={"stopped": reason})
        for name, reason in reasons.items()
        if name in recorded
    }
    return stopped


def first_state(source: str, instance: str, slot: str, system: str, start: Lsn) -> StreamState:
    """Return the state of a stream from which nothing was read: every commit from `start` on is still to come."""
    return StreamState(
        source=source,
        instance=instance,
        slot=slot,
        system_identifier=system,
        commit_lsn=Lsn(start - 1),
        ordinal=0,
        confirmed_lsn=start,
        ts_ms=0,
    )
