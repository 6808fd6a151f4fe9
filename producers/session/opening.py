"""Opens a source's session: every step of a start, in order, until the session may copy and stream.

A refused start does not affect a running producer. Once the Kafka client has fenced it, no other process can write the
source's records.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import psycopg

from infra.kafka import clients
from infra.kafka.topics import shows_all
from infra.postgres.connect import connect, translated
from infra.postgres.control import ensure_control_schema
from infra.postgres.heartbeat import beat
from infra.postgres.moments import next_xid
from infra.service import log
from infra.service.signals import bounded
from infra.settings.model import Settings
from infra.state.positions import Positions, SnapshotState, SourceState
from producers.publish.capture import Capture
from producers.publish.kafka_transaction import Relay
from producers.publish.registry_check import require_same_registry
from producers.publish.stray_writes import Strays
from producers.publish.table_publisher import TableFeed
from producers.session import acquire, handover, resume
from producers.session.acquire import begin_stream, open_feeds, prepare_topics, take_session, take_slot
from producers.session.commits import Commits, Identity, Restart
from producers.session.copy_limits import CopyLimits, snapshot_limits
from producers.session.copy_phase import ChunkSteps, CopyLog, Turns, Workers, choose
from producers.session.first_claim import require_sole
from producers.session.handover import Found
from producers.session.loop import USUAL, Parts, Session, Timing
from producers.session.slot_monitor import SlotMonitor
from producers.session.snapshot_requests import Requests
from producers.snapshot.chunk_readers import ChunkReaders
from producers.snapshot.chunk_rules import Unseen
from producers.snapshot.connection_limits import session_name, worker_name
from producers.snapshot.reader import chunk_bytes
from producers.source import preflight, slots, synchronous_commits
from producers.source.server_text import server_text
from producers.source.tables import CapturedTable, captured_tables
from producers.stream.reassembly import Incoming
from producers.stream.spill import SpillDirectory
from producers.stream.visibility_gate import gated
from producers.watch.catalog_watch import TableWatch
from producers.watch.topic_watch import TopicWatch
from schemas.codec import implementation
from schemas.lazy_dataclass import dataclass
from schemas.topics import positions_topic

OUTDATED: Final = "its tables' state was read a moment too early"

_SHOWN_SECONDS: Final = 5.0
_PATIENCE: Final = "SET lock_timeout = '2s'"
"""For queries next to a chunk, during which the stream pauses; not for what a start has to wait for."""


@dataclass(frozen=True)
class Start:
    """One start of a source's producer.

    With `successor_ends_it`, a record that another producer wrote since raises Fenced. `slot_monitor` is shared with
    earlier sessions and knows the WAL rate. `unfit` are tables that the last session could not re-snapshot: if this one
    cannot either, it continues without them.
    """

    settings: Settings
    source: str
    instance: str
    stop: threading.Event
    slot_monitor: SlotMonitor
    successor_ends_it: bool = False
    unfit: Collection[str] = ()
    timing: Timing = USUAL


@contextmanager
def open_session(start: Start, kind: type[Session] = Session) -> Iterator[Session | Restart]:
    """Open a session of this `kind`; yields a Restart when it cannot re-snapshot a table, or read an outdated state.

    Raises preflight's errors, SilentGap, HandoverAwaited, OwnershipMoved, Fenced, and Unavailable.
    """
    settings, database = start.settings, start.settings.database(start.source)
    with ExitStack() as opened:
        clients.ensure_reachable(settings.kafka)
        sql = opened.enter_context(connect(database.address, name=session_name(start.source), reading=True))
        with translated(database.address), bounded(sql, start.stop):
            session = _open(start, sql, opened, kind)
        yield session


def _open(start: Start, sql: psycopg.Connection[Any], opened: ExitStack, kind: type[Session]) -> Session | Restart:
    settings, source, database = start.settings, start.source, start.settings.database(start.source)
    lines = log.get(**{log.SOURCE: source})
    slot = slots.slot_name(settings, source, database)
    snapshot_limits(source, database.snapshot)  # a mistake there is reported before another producer is fenced
    sql.execute(acquire.SESSION)
    watch = TableWatch(sql, source, database.publication, lines)
    # One reader: it reads the topic from its start once, and continues from there at each later call.
    positions = Positions(settings.prefix, settings.kafka)
    recorded = positions.sources().get(source, SourceState())
    stopped, tables = _captured(start, sql, slot, recorded)
    watch.log_stopped(stopped.values())
    if not tables:
        if _outdated(settings, positions, source, recorded, start.stop):
            return Restart(OUTDATED)
        raise acquire.all_stopped(source, stopped.values())
    topics = prepare_topics(settings, source, tables, lines)
    # Once before the fence, so that a refused start does not affect a running producer.
    found = _find(start, sql, positions, tables, alone=False)
    require_same_registry(settings, {source: found.scope.of(found.state).snapshots})
    relay = Relay(settings.kafka, f"{settings.prefix}.{source}", positions_topic(settings.prefix))
    opened.callback(relay.close)
    # Only this process can write the source's records from here on.
    found = _find(start, sql, positions, tables, alone=True)
    state, scope, server, publication = found
    if _stops(state) != _stops(recorded):
        # A commit returns a moment before readers see it, also one of this process's own last session. Recording the
        # tables that were stopped by then would undo it.
        return Restart(OUTDATED)
    take_session(sql, source, slot, start.stop)
    known = scope.of(state)
    snapshots = resume.current_snapshots(settings, source, known, scope.here(tables), publication, topics.created)
    published = acquire.open_publication(sql, database.publication, tables, snapshots, lines)
    preceding = scope.handover_before(snapshots)
    stream_state = known.stream or begin_stream(sql, source, start.instance, slot, server.system, preceding, start.stop)
    # Taken after publication and slot: an older transaction may be in neither the stream nor an earlier snapshot.
    not_before = next_xid(sql)
    feeds = open_feeds(settings, source, tables, topics, snapshots, scope, watch, not_before=not_before)
    lines.info("schemas registered", tables=len(feeds))
    unseen, strays = Unseen(stream_state.unseen), Strays(source, state.strays, feeds)
    capture = Capture(feeds, stream_state.position, stream_state.confirmed_lsn, unseen, strays, server_text(sql))
    capture.commit_ms = stream_state.ts_ms
    capture.handovers = dict.fromkeys(scope.returned)
    requests = Requests(sql, feeds, stopped, lines, stream_state.refused_request)
    commits = Commits(
        sql, Identity(source, start.instance, slot, server), feeds, capture, relay, requests, watch, start.slot_monitor
    )
    watch.begin(feeds)
    if (restart := claim(start, commits, feeds, capture, state, stopped, published)) is not None:
        return restart
    require_sole(sql, found, feeds, positions, commits, start.stop)
    parts = _reading(start, sql, opened, slot, feeds, capture, commits, watch)
    if implementation.compiled is None:
        lines.warning(
            "codec is not compiled", **{log.REASON: implementation.MISSING}, remedy=implementation.MISSING_REMEDY
        )
    lines.info("reading", slot=slot, codec=implementation.name, **{log.POSITION: str(capture.position)})
    parts.copy_log.resumed(feeds, snapshots, database.snapshot.chunk_rows)
    return kind(parts, start.stop, start.timing)


def _outdated(
    settings: Settings, positions: Positions, source: str, recorded: SourceState, stop: threading.Event
) -> bool:
    """Whether Kafka shows another state once it shows all that was committed; waits for that briefly."""
    deadline = time.monotonic() + _SHOWN_SECONDS
    while not shows_all(settings.kafka, positions_topic(settings.prefix)) and time.monotonic() < deadline:
        stop.wait(0.02)
    return _stops(positions.sources().get(source, SourceState())) != _stops(recorded)


def _stops(state: SourceState) -> dict[str, tuple[object, ...]]:
    """Return what decides which recorded tables are left out."""
    return {
        name: (each.stopped, each.from_scratch, each.topic, each.topic_partitions)
        for name, each in state.snapshots.items()
    }


def _captured(
    start: Start, sql: psycopg.Connection[Any], slot: str, recorded: SourceState
) -> tuple[Mapping[str, SnapshotState], Sequence[CapturedTable]]:
    """Return the stopped tables and the tables that can be captured; run preflight and create the control schema."""
    settings, source, database = start.settings, start.source, start.settings.database(start.source)
    stopped = resume.stopped_tables(sql, settings, source, recorded)
    preflight.require(sql, source, database, slot, settings.prefix, leave_out=stopped, copied=recorded.snapshots)
    if synchronous_commits.counts(sql, source, slot):
        synchronous_commits.report(log.get(**{log.SOURCE: source}))
    ensure_control_schema(sql, source, database.gitlab_schemas, prefix=settings.prefix)
    return stopped, captured_tables(sql, source, database, settings.prefix, leave_out=stopped)


def _reading(
    start: Start,
    sql: psycopg.Connection[Any],
    opened: ExitStack,
    slot: str,
    feeds: Sequence[TableFeed],
    capture: Capture,
    commits: Commits,
    watch: TableWatch,
) -> Parts:
    """Take over the slot, and return the session's parts."""
    source, database = start.source, start.settings.database(start.source)
    lines = log.get(**{log.SOURCE: source})
    spills = opened.enter_context(SpillDirectory(database.spill_directory))
    stream = take_slot(sql, database.address, source, slot, database.publication, capture.confirmed, start.stop)
    opened.callback(stream.close)
    sql.execute(_PATIENCE)
    tables = [feed.table.name for feed in feeds]
    limits = CopyLimits(source, database.snapshot, snapshot_limits(source, database.snapshot), tables)
    turns = Turns(lines, limits.chunk_bytes)
    steps = ChunkSteps(watch, turns, chunk_bytes(database.snapshot.workers))
    return Parts(
        source=source,
        address=database.address,
        settings=database.snapshot,
        sql=sql,
        stream=stream,
        incoming=gated(Incoming(stream, spills), database, sql, stream, lines),
        feeds=feeds,
        capture=capture,
        commits=commits,
        choose=lambda: choose(sql, feeds, turns, capture.unseen, start.stop, lines, limited=limits.wait(sql)),
        workers=_workers(start, opened, steps),
        turns=turns,
        limits=limits,
        beat=partial(beat, sql),
        watch=watch,
        topic_watch=TopicWatch(start.settings.kafka),
        slot_monitor=start.slot_monitor,
        copy_log=CopyLog(lines),
    )


def _workers(start: Start, opened: ExitStack, steps: ChunkSteps) -> Workers:
    source, database = start.source, start.settings.database(start.source)

    def connected() -> psycopg.Connection[Any]:
        connection = connect(database.address, name=worker_name(source), reading=True)
        connection.execute(_PATIENCE)
        return connection

    count = database.snapshot.workers
    workers = Workers(steps, lambda: ChunkReaders(count, connected, start.stop, chunk_bytes(count)))
    opened.callback(workers.leave)
    return workers


def _find(
    start: Start,
    sql: psycopg.Connection[Any],
    positions: Positions,
    tables: Sequence[CapturedTable],
    *,
    alone: bool,
) -> Found:
    instance = start.instance if start.successor_ends_it else None
    return handover.find(sql, start.settings, start.source, tables, positions, instance, alone=alone)


def claim(
    start: Start,
    commits: Commits,
    feeds: Sequence[TableFeed],
    capture: Capture,
    state: SourceState,
    stopped: Mapping[str, SnapshotState],
    published: Mapping[str, str],
) -> Restart | None:
    """Record this process as the source's producer, and the state of its tables from now on."""
    captured = {feed.table.name for feed in feeds}
    for feed in feeds:
        if feed.state.from_scratch and not feed.state.stopped:
            feed.restart_from_scratch(capture.position, feed.state.not_before)
        if not feed.state.stopped:
            feed.copy.note(published=published.get(feed.table.name))
    # A table that is no longer captured loses its record: if captured again later, it has to be re-snapshotted.
    dropped = [(name, None) for name in state.snapshots if name not in captured | stopped.keys()]
    current = [(feed.table.name, None if feed.away else feed.state) for feed in feeds]
    unfit = {
        feed.table.name: feed.state
        for feed in feeds
        if feed.table.name in start.unfit and feed.state.from_scratch and feed.state.stopped
    }
    return commits.commit([*dropped, *current], left_out={**stopped, **unfit})
