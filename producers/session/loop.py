"""A source's producer: one process that copies tables and follows the stream, taking turns.

In a copy phase the stream stands while chunks are read; in a stream phase it catches up, so that the slot never holds
back more than a set amount of log. What a phase has published is in Kafka with its position before the other begins.
Killed at any moment, the next start goes on from the recorded state and reads at most one chunk again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, Final

import psycopg
from pydantic import BaseModel

from infra.kafka import clients
from infra.postgres.connect import connect, one_line, translated
from infra.postgres.control import ensure_control_schema
from infra.postgres.heartbeat import beat
from infra.schema_registry.topic_registry import IncompatibleSchema
from infra.service import log, metrics
from infra.service.signals import bounded
from infra.settings.model import Settings
from infra.state.positions import Positions, SnapshotState, SourceState, StreamState, handover_key, record_key
from producers.publish.capture import Capture
from producers.publish.kafka_transaction import Relay
from producers.publish.stray_writes import Strays
from producers.publish.table_publisher import TableFeed
from producers.session import acquire, copy_phase, resume
from producers.session import handover as ownership
from producers.session.acquire import SESSION, begin_stream, open_feeds, prepare_topics, take_session, take_slot
from producers.session.copy_phase import BARRIER_SECONDS, CopyLog, Turns
from producers.session.handover import Found
from producers.session.slot_monitor import Guardian, guardian_of
from producers.session.snapshot_requests import Requests
from producers.snapshot.chunk_rules import Unseen
from producers.snapshot.reader import TableGone
from producers.source import preflight, slots
from producers.source.schema_changes import TableStopped
from producers.source.server_text import server_text
from producers.source.table_errors import TableBusy
from producers.source.tables import CapturedTable, captured_tables
from producers.source.transactions import current_snapshot, next_xid
from producers.stream.reassembly import Incoming
from producers.stream.spill import SpillDirectory
from producers.stream.visibility_gate import gated
from producers.watch.catalog_watch import TableWatch
from producers.watch.topic_watch import TopicWatch
from schemas import codec
from schemas.errors import Malformed
from schemas.positions import Lsn
from schemas.topics import positions_topic

_FRAMES: Final = 5_000
"""Frames handled between two looks at the clock, the stop event and the connection."""

_COMMIT_EVENTS: Final = 50_000
_COMMIT_SECONDS: Final = 0.05
"""Under load a Kafka transaction ends after this many events or seconds; with nothing more to read, at once."""

_COPY_SECONDS: Final = 5.0
"""How long the stream stands at most for a copy phase, so that changes stay fresh while tables are copied."""

_HEARTBEAT_SECONDS: Final = 5.0

_PATIENCE: Final = "SET lock_timeout = '2s'"
"""For what is asked beside a chunk, while which the stream stands; not for what a start has to wait for."""


class ReadAnew(Exception):
    """A table is to be read anew: its source starts again, with the table as it is now."""


class StreamLacksPartitions(Exception):
    """Partitions were added of which the server would send no changes: the stream begins again, behind that."""


class Session:
    """One connection to everything: opened, it has fenced every earlier producer of its source."""

    def __init__(
        self,
        settings: Settings,
        source: str,
        instance: str,
        stop: threading.Event,
        lines: log.Log,
        *,
        successor_ends_it: bool,
        guardian: Guardian | None = None,
        unfit: Collection[str] = (),
    ) -> None:
        """With `successor_ends_it`, another producer's record since this one's last raises Fenced.

        `guardian` is the one of earlier sessions, which knows how fast the log grows. `unfit` are tables that the last
        one began with, and could not read anew: where this one cannot either, it goes on without them.
        """
        self._unfit = unfit
        self._settings = settings
        self._database = settings.database(source)
        self._source = source
        self._instance = instance
        self._stop = stop
        self._log = lines
        self._dsn = self._database.dsn.get_secret_value()
        self._slot = slots.slot_name(settings, source, self._database)
        self._guardian = guardian or guardian_of(settings, source, lines)
        self._heartbeat_due = 0.0
        self._waits = False
        with ExitStack() as opened:
            clients.ensure_reachable(settings.kafka)
            self._sql: psycopg.Connection[Any] = opened.enter_context(
                connect(self._dsn, name=f"produce {source}", reading=True)
            )
            with translated(self._dsn), bounded(self._sql, stop):
                self._open(opened, successor_ends_it)
            self._opened = opened.pop_all()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def work(self) -> None:
        """Copy and stream until stopped; returns with everything committed that was read."""
        with translated(self._dsn):
            while not self._stop.is_set():
                if self._copying:
                    self._waits = False
                    self._copy_phase()
                    # What has to wait for transactions that run does not make the stream wait with it.
                    self._stream_phase(until=self._heartbeat(), seconds=BARRIER_SECONDS if self._waits else 0)
                else:
                    self._stream_phase(until=None)

    def _open(self, opened: ExitStack, successor_ends_it: bool) -> None:
        settings, source = self._settings, self._source
        self._sql.execute(SESSION)
        self._watch = TableWatch(self._sql, source, self._database.publication, self._log)
        # One reader: read from the topic's beginning here, and read on from there each time it is asked again.
        positions = Positions(settings.prefix, settings.kafka)
        recorded = positions.sources().get(source, SourceState())
        stopped = resume.stopped_tables(self._sql, settings, source, recorded)
        preflight.require(
            self._sql, source, self._database, self._slot, settings.prefix, leave_out=stopped, copied=recorded.snapshots
        )
        ensure_control_schema(self._sql, source, self._database.gitlab_schemas, prefix=settings.prefix)
        tables = captured_tables(self._sql, source, self._database, settings.prefix, leave_out=stopped)
        self._watch.tell(stopped.values())
        if not tables:
            raise acquire.all_stopped(source, stopped.values())
        topic = positions_topic(settings.prefix)
        partitions = prepare_topics(settings, source, tables, self._log)
        # Once before, so that a start that is refused leaves the producer that runs alone.
        self._standing(positions, tables, successor_ends_it, alone=False)
        self._relay = Relay(settings.kafka, f"{settings.prefix}.{source}", topic)
        opened.callback(self._relay.close)
        # Nobody but this process can write the source's records from here on.
        state, standing, _, publication = self._standing(positions, tables, successor_ends_it, alone=True)
        take_session(self._sql, source, self._slot, self._stop)
        known = standing.of(state)
        snapshots = resume.standing_snapshots(settings, source, known, standing.here(tables), publication)
        self._published = acquire.open_publication(self._sql, self._database.publication, tables, snapshots, self._log)
        stream = known.stream or begin_stream(
            self._sql, source, self._instance, self._slot, self._server.system, standing.behind(snapshots), self._stop
        )
        # Taken behind publication and slot: what began before may be in neither stream nor an earlier snapshot.
        not_before = next_xid(self._sql)
        self._feeds = open_feeds(
            settings, source, tables, partitions, snapshots, standing, self._watch, not_before=not_before
        )
        self._log.info("schemas are registered", tables=len(self._feeds))
        strays = Strays(source, state.strays, self._feeds)
        self._capture = Capture(
            self._feeds, stream.position, stream.confirmed_lsn, Unseen(stream.unseen), strays, server_text(self._sql)
        )
        self._capture.commit_ms = stream.ts_ms
        self._capture.handovers = dict.fromkeys(standing.returned)
        self._requests = Requests(self._sql, self._feeds, stopped, self._log, stream.refused_request)
        self._watch.begin(self._feeds)
        self._claim(state, stopped)
        spills = opened.enter_context(SpillDirectory(self._database.spill_directory))
        self._stream = take_slot(
            self._sql, self._dsn, source, self._slot, self._database.publication, self._capture.confirmed, self._stop
        )
        opened.callback(self._stream.close)
        self._incoming = gated(Incoming(self._stream, spills), self._database, self._sql, self._stream, self._log)
        self._sql.execute(_PATIENCE)
        self._log.info("reading", slot=self._slot, codec=codec.name, **{log.POSITION: str(self._capture.position)})
        self._turns = Turns(self._log)
        self._topic_watch = TopicWatch(settings.kafka)
        self._copy_log = CopyLog(self._log)
        self._copy_log.resumed(self._feeds, snapshots, self._database.snapshot.chunk_rows)

    def _standing(
        self, positions: Positions, tables: Sequence[CapturedTable], successor_ends_it: bool, *, alone: bool
    ) -> Found:
        instance = self._instance if successor_ends_it else None
        found = ownership.find(self._sql, self._settings, self._source, tables, positions, instance, alone=alone)
        self._server = found.server
        return found

    def _claim(self, state: SourceState, stopped: Mapping[str, SnapshotState]) -> None:
        """Record this process as the source's producer, and the tables as they are captured from now on."""
        captured = {feed.table.name for feed in self._feeds}
        for feed in self._feeds:
            if feed.state.anew and not feed.state.stopped:
                feed.read_anew(self._capture.position, feed.state.not_before)
            if not feed.state.stopped:
                feed.copy.note(published=self._published.get(feed.table.name))
        # A table that is captured no more loses its record: captured again later, it has to be read anew.
        dropped = [(name, None) for name in state.snapshots if name not in captured | stopped.keys()]
        standing = [(feed.table.name, None if feed.away else feed.state) for feed in self._feeds]
        unfit = {
            feed.table.name: feed.state
            for feed in self._feeds
            if feed.table.name in self._unfit and feed.state.anew and feed.state.stopped
        }
        self._commit([*dropped, *standing], left_out={**stopped, **unfit})

    @property
    def _copying(self) -> bool:
        return any(feed.copying for feed in self._feeds)

    def _copy_phase(self) -> None:
        """Copy chunks until the slot holds back too much log, the time is up, or all is copied."""
        deadline = time.monotonic() + _COPY_SECONDS
        # A quarter of what may be held back: the slot lets go a step behind what is confirmed, and the log grows on.
        bound = self._database.snapshot.max_retained_wal_mb << 18
        while not self._stop.is_set() and time.monotonic() < deadline:
            choice = copy_phase.choose(self._sql, self._feeds, self._turns, self._capture.unseen, self._stop, self._log)
            self._waits = choice.waits
            if choice.feed is None:
                return
            try:
                lsn = self._copy_chunk(choice.feed)
            except (TableBusy, psycopg.errors.LockNotAvailable) as error:
                self._turns.set_aside(choice.feed, one_line(error))
                continue
            if lsn is None or lsn - self._capture.confirmed > bound:
                return

    def _copy_chunk(self, feed: TableFeed) -> Lsn | None:
        """Copy the next chunk; return the log position behind it, or None when it is not the table's turn any more."""
        rows = self._database.snapshot.chunk_rows
        try:
            copied = copy_phase.copy_chunk(self._sql, feed, self._watch, self._turns, self._capture.position, rows)
        except (TableGone, TableStopped, IncompatibleSchema, Malformed) as error:
            feed.stop(error.problem)
            self._commit([(feed.table.name, feed.state)])
            return None
        if copied is None:
            return None
        self._commit([(feed.table.name, feed.state)])
        counter = metrics.COMPLETED if copied.by_key else metrics.COPIED
        counter.labels(self._source, feed.table.name).inc(copied.rows)
        self._copy_log.copied(feed, copied)
        return copied.lsn

    def _stream_phase(self, until: Lsn | None, seconds: float = 0) -> None:
        """Publish the stream's changes until stopped, or until it has passed `until` and some seconds are over.

        With None, until a table has to be copied: a truncate may make a snapshot start again that was just complete.
        In any case until many rows have to be read by key, so that no more of them wait than can be recorded.
        """
        capture = self._capture
        handle = capture.handle
        committed = time.monotonic()
        enough = committed + seconds
        while not self._stop.is_set():
            pending = capture.moved or self._relay.pending
            messages = self._incoming.read(_FRAMES, 0 if pending else 0.2)
            for message in messages:
                handle(message)
            now = time.monotonic()
            self._send()
            crowded = any(feed.rows_wait for feed in self._feeds)
            full = crowded or now > committed + _COMMIT_SECONDS or capture.published >= _COMMIT_EVENTS
            if pending and (full or not messages):
                self._commit()
                committed = now
                done = self._copying if until is None else capture.position.commit_lsn >= until and now >= enough
                if done or crowded:
                    return
            elif not pending:
                committed = now
            if now >= self._heartbeat_due or capture.met_stranger or self._guardian.hurries(self._stream.received):
                self._heartbeat()
        self._commit()

    def _heartbeat(self) -> Lsn:
        """Write a heartbeat and return its position: an idle slot moves on, and the lag can be seen."""
        self._heartbeat_due = time.monotonic() + _HEARTBEAT_SECONDS
        self._capture.met_stranger = False
        self._watch.look(self._feeds)
        self._topic_watch.look(self._feeds)
        self._guardian.look(self._sql, self._capture.position.commit_lsn)
        try:
            lsn = beat(self._sql)
        except psycopg.errors.LockNotAvailable:
            self._log.warning("headrace.heartbeat is locked; an idle slot retains WAL meanwhile")
            return self._capture.position.commit_lsn
        self._watch.noted(lsn)
        return lsn

    def _send(self) -> None:
        for feed in self._feeds:
            if feed.waiting:
                self._relay.send(feed.table.topic, feed.take())

    def _commit(
        self,
        states: Iterable[tuple[str, SnapshotState | None]] = (),
        left_out: Mapping[str, SnapshotState] = MappingProxyType({}),
    ) -> None:
        """Publish what waits, with the position, in one Kafka transaction; then let the slot forget it.

        What is recorded of tables that are `left_out` starts nothing: one that is to be read anew is so at a later
        start, once it can be captured again.
        """
        capture = self._capture
        self._send()
        if self._watch.passed(capture.position.commit_lsn):
            capture.reroute()
        capture.strays.missed(self._feeds, capture.handovers, lambda: next_xid(self._sql))
        for feed in self._feeds:
            if feed.copy.incomplete.too_many:
                feed.repeat_for_rows(next_xid(self._sql))
        changed: dict[str, SnapshotState | None] = {}
        for row in capture.take_requests():
            changed.update(self._requests.take(row))
        changed.update(states)
        # Later: what was noted since, by this commit too, is newer than what the caller has.
        changed.update((feed.table.name, feed.state) for feed in capture.settle())
        anew = [name for name, state in changed.items() if state is not None and state.anew and name not in left_out]
        changed = {**left_out, **changed}
        self._watch.tell(state for state in changed.values() if state is not None)
        moved = capture.handovers
        changed.update(
            (feed.table.name, None if feed.away else feed.state)
            for feed in self._feeds
            if feed.table.gitlab_schema in moved
        )
        self._send()
        if capture.unseen.xids:
            capture.unseen.visible_in(current_snapshot(self._sql)[0])
        records: list[tuple[bytes, BaseModel | None]] = [
            (record_key(self._source, table), state) for table, state in changed.items()
        ]
        records += ((handover_key(self._source, name), handover) for name, handover in moved.items())
        self._relay.record([*records, *capture.strays.records(), (record_key(self._source), self._stream_state())])
        self._relay.commit()
        metrics.PUBLISHED.labels(self._source).inc(capture.published)
        metrics.CONFIRMED_LSN.labels(self._source).set(capture.confirmed)
        metrics.COMMIT_TIME.labels(self._source).set(capture.commit_ms / 1000)
        capture.moved = False
        capture.published = 0
        if hasattr(self, "_stream"):
            self._stream.confirm(capture.confirmed)
        if moved:
            capture.handovers = {}
            self._log.info("change of owner", away=[name for name, handover in moved.items() if handover])
            ownership.require_any_here(self._source, self._feeds)
        if anew:
            raise ReadAnew(anew[0])
        if self._watch.stream_lacks_partitions:
            raise StreamLacksPartitions

    def _stream_state(self) -> StreamState:
        capture, rate = self._capture, self._guardian.rate
        return StreamState(
            source=self._source,
            instance=self._instance,
            slot=self._slot,
            system_identifier=self._server.system,
            commit_lsn=capture.position.commit_lsn,
            ordinal=capture.position.ordinal,
            confirmed_lsn=capture.confirmed,
            ts_ms=capture.commit_ms,
            unseen=capture.unseen.xids,
            timeline=self._server.timeline,
            log_bytes_per_second=rate.bytes_per_second if rate else None,
            log_seconds=rate.seconds if rate else 0.0,
            refused_request=self._requests.refused,
        )
