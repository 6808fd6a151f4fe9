"""Prepares a session that has fenced other producers: topics, publication, stream start, table feeds, and the slot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import psycopg

from infra.kafka import durability, topic_requirements
from infra.kafka.topic_configurations import TopicConfigurations
from infra.kafka.topics import STATE, ensure_topic, ensure_topics
from infra.postgres.connect import one_line
from infra.postgres.control import opened_lsn
from infra.schema_registry import topic_registry
from infra.service import log
from infra.service.service_state import SLOT, THIS
from infra.settings.database_login import Address
from infra.settings.model import Settings
from infra.state.positions import HandoverState, SnapshotState, StreamState
from producers.publish.kafka_stalls import Stalls
from producers.publish.table_encoders import schemas_of
from producers.publish.table_publisher import TableFeed, TableTopic
from producers.session import handover as ownership
from producers.session import resume
from producers.session.handover import Scope
from producers.source import slots
from producers.source.partitions import NOTICES_ATTACHED
from producers.source.publication import edited, ensure_publication, read_publication, withdraw
from producers.source.schema_changes import TableStopped
from producers.source.server_text import stream_encoding
from producers.source.synchronous_commits import application_name
from producers.source.tables import CapturedTable
from producers.stream.connection import ReplicationStream, SlotInUse, StreamOptions
from producers.stream.start_command import Streaming
from producers.watch.catalog_watch import TableWatch
from schemas.errors import HeadraceError, Interrupted
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn
from schemas.topics import positions_topic, schemas_topic

SESSION: Final = "SET synchronous_commit = local"
"""Heartbeats don't wait for a standby that is down; a session's other settings are set when it is opened."""

_TAKEOVER_SECONDS: Final = 15.0


@dataclass(frozen=True)
class Topics:
    """Table → what a start needs to know of its topic, and the names of the topics that this start created."""

    of: Mapping[str, TableTopic]
    created: frozenset[str]


def prepare_topics(settings: Settings, source: str, tables: Sequence[CapturedTable], lines: log.Log) -> Topics:
    """Create missing topics.

    Raises TopicUnfit for a topic that would lose records it has to keep.
    """
    lines.info("preparing topics", tables=len(tables))
    positions = positions_topic(settings.prefix)
    with Stalls(f"{settings.prefix}.{source}") as stalls, stalls.watching("create the topics"):
        ensure_topic(settings.kafka, positions, partitions=1, config=STATE)
        topic_registry.prepare(settings)
        ensured = ensure_topics(settings.kafka, [table.topic for table in tables])
        configured = TopicConfigurations(settings.kafka)
        topic_requirements.require(configured, ensured.partitions, (positions, schemas_topic(settings.prefix)))
    for weakness in durability.weaknesses(settings, configured):
        fields = {"topics": len(weakness.shown), "first": weakness.shown[0]} if weakness.shown else {}
        reason = weakness.problem.removeprefix("WARNING: ")
        lines.warning("Kafka setup is not durable", **{log.REASON: reason}, remedy=weakness.remedy, **fields)
    lines.info("topics ready", topics=len(ensured.partitions))
    return Topics(
        {
            table.name: TableTopic(ensured.partitions[table.topic], configured.largest_record(table.topic))
            for table in tables
        },
        ensured.created,
    )


def open_feeds(
    settings: Settings,
    source: str,
    tables: Sequence[CapturedTable],
    topics: Topics,
    snapshots: Mapping[str, SnapshotState],
    scope: Scope,
    watch: TableWatch,
    *,
    not_before: int,
) -> list[TableFeed]:
    """Return the tables' feeds, each with its progress in `snapshots`.

    Raises TableStopped when every table that the source owns is stopped.
    """
    registry = topic_registry.open_registry(settings)
    fresh = [table for table in scope.here(tables) if table.name not in snapshots or snapshots[table.name].from_scratch]
    for table in fresh:
        registry.forget(f"{table.topic}-key")
        registry.forget(f"{table.topic}-value")
    # A table that continues has its schemas registered by its feed, which knows the changes that can be followed.
    registry.register_all([each for table in fresh for each in schemas_of(table)])
    # Once for all tables, and from then on for each when its columns change.
    known = watch.all_now([table.relation.oid for table in tables])
    feeds = [
        TableFeed(
            source,
            table,
            topics.of[table.name],
            registry,
            snapshots.get(table.name) or scope.given.get(table.name),
            not_before=not_before,
            complete_rows=settings.database(source).complete_rows,
            now=partial(known.get, table.relation.oid),
        )
        for table in tables
    ]
    for feed in feeds:
        feed.encoders.now = partial(watch.now, feed.table.relation.oid)
        feed.away = feed.table.gitlab_schema in scope.away
    here = [feed for feed in feeds if not feed.away]
    if here and all(feed.state.stopped for feed in here):
        # Nothing was skipped yet, so undoing the change still helps.
        raise all_stopped(source, (feed.state for feed in here))
    return feeds


def all_stopped(source: str, tables: Iterable[SnapshotState]) -> TableStopped:
    """Return the error of a source whose tables are all stopped."""
    reasons = "; ".join(sorted(f"{each.table}: {each.stopped}" for each in tables))
    return TableStopped(f"every table of {source} is stopped ({reasons})")


def open_publication(
    connection: psycopg.Connection[Any],
    name: str,
    tables: Sequence[CapturedTable],
    snapshots: dict[str, SnapshotState],
    lines: log.Log,
) -> Mapping[str, str]:
    """Publish exactly `tables`; return table → its version in the publication, to be recorded.

    Stops those of `snapshots` whose publication was edited since they were recorded. A table that is already up to
    date keeps its version, so that an edit until now is noticed even if it was undone.
    """
    if connection.info.server_version < NOTICES_ATTACHED:
        # The stream may not have reached the attachment of a partition: once the table is published again, the server
        # sends the partition's changes from here on.
        for each in tables:
            if each.partitioned and (each.name not in snapshots or snapshots[each.name].from_scratch):
                withdraw(connection, name, each)
    if ensure_publication(connection, name, tables):
        lines.info("publication set", publication=name, tables=len(tables))
    publication = read_publication(connection, name)
    for table, snapshot in snapshots.items():
        if not snapshot.from_scratch and (reason := edited(snapshot.published, table, publication)) is not None:
            snapshots[table] = snapshot.model_copy(update={"stopped": reason})
    return {} if publication is None else publication.tables


def begin_stream(
    connection: psycopg.Connection[Any],
    source: str,
    instance: str,
    slot: str,
    system: str,
    handover: HandoverState | None,
    stop: threading.Event,
) -> StreamState:
    """Return the state of a stream that is read for the first time: after `handover`, or from its slot's start.

    An existing slot is read from the current WAL position. A missing one is created, which waits for every running
    transaction. Raises Interrupted when stopped meanwhile.
    """
    existing = slots.read(connection, slot)
    if handover is not None:
        return ownership.first_state(source, instance, slot, existing, system, handover, opened_lsn(connection))
    if existing is not None and existing.ready:
        assert existing.confirmed_flush is not None
        # A slot older than the publication could never be read, and every table is snapshotted from now on.
        start = existing.confirmed_flush if existing.active_pid else slots.skip(connection, slot)
    else:
        lines = log.get(**{log.SOURCE: source})
        lines.info("creating slot, waiting for running transactions", slot=slot)
        start = slots.create(connection, slot, failover=True, stop=stop)
    return resume.first_state(source, instance, slot, system, start)


def terminate(connection: psycopg.Connection[Any], pid: int) -> None:
    """Ask the server to end a session, without waiting for its end."""
    connection.execute("SELECT pg_terminate_backend(%s)", (pid,))


def take_session(
    connection: psycopg.Connection[Any],
    source: str,
    slot: str,
    stop: threading.Event,
    *,
    end: Callable[[psycopg.Connection[Any], int], None] = terminate,
    seconds: float = _TAKEOVER_SECONDS,
) -> None:
    """Make this the only session that copies for a slot; terminate that of a producer that was just fenced.

    A session that hangs, or whose machine is gone, would keep its chunk's locks. Another session that alters or
    truncates the table would wait for them, and all others would queue behind it. Raises SlotInUse when the session
    does not end within `seconds` although `end` was called, and Interrupted when stopped meanwhile.
    """
    deadline = time.monotonic() + seconds
    while True:
        if slots.hold_session(connection, slot):
            return
        for pid in slots.sessions_of(connection, slot):
            if time.monotonic() > deadline:
                raise SlotInUse(slot, pid)
            log.get(**{log.SOURCE: source}).warning("terminating the session of an earlier producer", pid=pid)
            THIS.away(SLOT, f"process {pid} copies for slot {slot}")
            end(connection, pid)
        if stop.wait(0.1):
            raise Interrupted(f"stopped while terminating the session of an earlier producer of {source}")


def take_slot(
    connection: psycopg.Connection[Any],
    address: Address,
    source: str,
    slot: str,
    publication: str,
    start: Lsn,
    stop: threading.Event,
) -> ReplicationStream:
    """Open the stream; terminate the connection of a producer that was just fenced.

    Makes the slot a failover slot if it is not one. Raises SlotInUse when the other producer keeps it, and Interrupted
    when stopped meanwhile.
    """
    deadline = time.monotonic() + _TAKEOVER_SECONDS
    while True:
        _ensure_failover(connection, source, slot)
        try:
            options = StreamOptions(
                # Large transactions are then spilled to this disk, not the source's, and are here when they commit.
                streaming=Streaming.ON,
                # Any role may write messages of up to a gigabyte, which would be read at every start.
                messages=False,
                application_name=application_name(source),
                client_encoding=stream_encoding(connection),
            )
            return ReplicationStream(address, slot, publication, start, options)
        except SlotInUse as error:
            if time.monotonic() > deadline:
                raise
            log.get(**{log.SOURCE: source}).warning("taking over slot", slot=slot, pid=error.pid)
            THIS.away(SLOT, error.problem)
            if error.pid is not None:
                terminate(connection, error.pid)
            if stop.wait(0.1):
                raise Interrupted(f"stopped while taking over slot {slot}") from error


def _ensure_failover(connection: psycopg.Connection[Any], source: str, slot: str) -> None:
    """Make the slot a failover slot. The source can be read without that, but a failover would lose the slot."""
    lines = log.get(**{log.SOURCE: source})
    try:
        if slots.ensure_failover(connection, slot):
            lines.info("slot failover enabled", slot=slot)
    except (psycopg.Error, HeadraceError) as error:
        lines.warning("slot failover not enabled", slot=slot, **{log.REASON: one_line(error)})
