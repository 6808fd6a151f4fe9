"""Opens a source's session: everything that a start does, in order, up to the moment when it may copy and stream.

A start that is refused leaves the producer that runs alone; from the Kafka client's fence on, nobody else can write the
source's records.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import psycopg

from infra.kafka import clients
from infra.postgres.connect import connect, translated
from infra.postgres.control import ensure_control_schema
from infra.postgres.heartbeat import beat
from infra.service import log
from infra.service.signals import bounded
from infra.settings.model import Settings
from infra.state.positions import Positions, SnapshotState, SourceState
from producers.publish.capture import Capture
from producers.publish.kafka_transaction import Relay
from producers.publish.stray_writes import Strays
from producers.publish.table_publisher import TableFeed
from producers.session import acquire, handover, resume
from producers.session.acquire import begin_stream, open_feeds, prepare_topics, take_session, take_slot
from producers.session.commits import Commits, Identity, Restart
from producers.session.copy_phase import CopyLog, Turns, choose, copy_chunk
from producers.session.handover import Found
from producers.session.loop import USUAL, Parts, Session, Timing
from producers.session.slot_monitor import Guardian
from producers.session.snapshot_requests import Requests
from producers.snapshot.chunk_rules import Unseen
from producers.source import preflight, slots
from producers.source.server_text import server_text
from producers.source.tables import CapturedTable, captured_tables
from producers.source.transactions import next_xid
from producers.stream.reassembly import Incoming
from producers.stream.spill import SpillDirectory
from producers.stream.visibility_gate import gated
from producers.watch.catalog_watch import TableWatch
from producers.watch.topic_watch import TopicWatch
from schemas import codec
from schemas.topics import positions_topic

_PATIENCE: Final = "SET lock_timeout = '2s'"
"""For what is asked beside a chunk, while which the stream stands; not for what a start has to wait for."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a source's producer.

    With `successor_ends_it`, another producer's record since this one's last raises Fenced. `guardian` is the one of
    earlier sessions, which knows how fast the log grows. `unfit` are tables that the last session began with, and could
    not read anew: where this one cannot either, it goes on without them.
    """

    settings: Settings
    source: str
    instance: str
    stop: threading.Event
    guardian: Guardian
    successor_ends_it: bool = False
    unfit: Collection[str] = ()
    timing: Timing = USUAL


@contextmanager
def open_session(start: Start, kind: type[Session] = Session) -> Iterator[Session | Restart]:
    """Open a session of this `kind`; a Restart where a table cannot be read anew by it.

    Raises what preflight refuses, SilentGap, HandoverAwaited, OwnershipMoved, Fenced, and Unavailable.
    """
    settings, database = start.settings, start.settings.database(start.source)
    dsn = database.dsn.get_secret_value()
    with ExitStack() as opened:
        clients.ensure_reachable(settings.kafka)
        sql = opened.enter_context(connect(dsn, name=f"produce {start.source}", reading=True))
        with translated(dsn), bounded(sql, start.stop):
            session = _open(start, sql, opened, kind)
        yield session


def _open(start: Start, sql: psycopg.Connection[Any], opened: ExitStack, kind: type[Session]) -> Session | Restart:
    settings, source, database = start.settings, start.source, start.settings.database(start.source)
    lines = log.get(**{log.SOURCE: source})
    slot = slots.slot_name(settings, source, database)
    sql.execute(acquire.SESSION)
    watch = TableWatch(sql, source, database.publication, lines)
    # One reader: read from the topic's beginning here, and read on from there each time it is asked again.
    positions = Positions(settings.prefix, settings.kafka)
    recorded = positions.sources().get(source, SourceState())
    stopped, tables = _captured(start, sql, slot, recorded)
    watch.tell(stopped.values())
    if not tables:
        raise acquire.all_stopped(source, stopped.values())
    partitions = prepare_topics(settings, source, tables, lines)
    # Once before, so that a start that is refused leaves the producer that runs alone.
    _find(start, sql, positions, tables, alone=False)
    relay = Relay(settings.kafka, f"{settings.prefix}.{source}", positions_topic(settings.prefix))
    opened.callback(relay.close)
    # Nobody but this process can write the source's records from here on.
    state, standing, server, publication = _find(start, sql, positions, tables, alone=True)
    take_session(sql, source, slot, start.stop)
    known = standing.of(state)
    snapshots = resume.standing_snapshots(settings, source, known, standing.here(tables), publication)
    published = acquire.open_publication(sql, database.publication, tables, snapshots, lines)
    behind = standing.behind(snapshots)
    stream_state = known.stream or begin_stream(sql, source, start.instance, slot, server.system, behind, start.stop)
    # Taken behind publication and slot: what began before may be in neither stream nor an earlier snapshot.
    not_before = next_xid(sql)
    feeds = open_feeds(settings, source, tables, partitions, snapshots, standing, watch, not_before=not_before)
    lines.info("schemas are registered", tables=len(feeds))
    unseen, strays = Unseen(stream_state.unseen), Strays(source, state.strays, feeds)
    capture = Capture(feeds, stream_state.position, stream_state.confirmed_lsn, unseen, strays, server_text(sql))
    capture.commit_ms = stream_state.ts_ms
    capture.handovers = dict.fromkeys(standing.returned)
    requests = Requests(sql, feeds, stopped, lines, stream_state.refused_request)
    commits = Commits(
        sql, Identity(source, start.instance, slot, server), feeds, capture, relay, requests, watch, start.guardian
    )
    watch.begin(feeds)
    if (restart := claim(start, commits, feeds, capture, state, stopped, published)) is not None:
        return restart
    parts = _reading(start, sql, opened, slot, feeds, capture, commits, watch)
    lines.info("reading", slot=slot, codec=codec.name, **{log.POSITION: str(capture.position)})
    parts.copy_log.resumed(feeds, snapshots, database.snapshot.chunk_rows)
    return kind(parts, start.stop, start.timing)


def _captured(
    start: Start, sql: psycopg.Connection[Any], slot: str, recorded: SourceState
) -> tuple[Mapping[str, SnapshotState], Sequence[CapturedTable]]:
    """Return the tables that are stopped, and those that can be captured; what they need is checked and made."""
    settings, source, database = start.settings, start.source, start.settings.database(start.source)
    stopped = resume.stopped_tables(sql, settings, source, recorded)
    preflight.require(sql, source, database, slot, settings.prefix, leave_out=stopped, copied=recorded.snapshots)
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
    """Take the slot over, and return what a session then works with."""
    source, database = start.source, start.settings.database(start.source)
    lines, dsn = log.get(**{log.SOURCE: source}), database.dsn.get_secret_value()
    spills = opened.enter_context(SpillDirectory(database.spill_directory))
    stream = take_slot(sql, dsn, source, slot, database.publication, capture.confirmed, start.stop)
    opened.callback(stream.close)
    sql.execute(_PATIENCE)
    turns = Turns(lines)
    return Parts(
        source=source,
        dsn=dsn,
        settings=database.snapshot,
        sql=sql,
        stream=stream,
        incoming=gated(Incoming(stream, spills), database, sql, stream, lines),
        feeds=feeds,
        capture=capture,
        commits=commits,
        choose=lambda: choose(sql, feeds, turns, capture.unseen, start.stop, lines),
        copy_chunk=partial(copy_chunk, sql, watch, turns),
        turns=turns,
        beat=partial(beat, sql),
        watch=watch,
        topic_watch=TopicWatch(start.settings.kafka),
        guardian=start.guardian,
        copy_log=CopyLog(lines),
    )


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
    """Record this process as the source's producer, and the tables as they are captured from now on."""
    captured = {feed.table.name for feed in feeds}
    for feed in feeds:
        if feed.state.anew and not feed.state.stopped:
            feed.read_anew(capture.position, feed.state.not_before)
        if not feed.state.stopped:
            feed.copy.note(published=published.get(feed.table.name))
    # A table that is captured no more loses its record: captured again later, it has to be read anew.
    dropped = [(name, None) for name in state.snapshots if name not in captured | stopped.keys()]
    standing = [(feed.table.name, None if feed.away else feed.state) for feed in feeds]
    unfit = {
        feed.table.name: feed.state
        for feed in feeds
        if feed.table.name in start.unfit and feed.state.anew and feed.state.stopped
    }
    return commits.commit([*dropped, *standing], left_out={**stopped, **unfit})
