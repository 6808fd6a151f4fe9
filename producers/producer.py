"""A source's producer: one process that copies tables and follows the stream, taking turns.

In a copy phase the stream stands while chunks are read; in a stream phase it catches up, so that the slot never holds
back more than a set amount of log. What a phase has published is in Kafka with its position before the other begins.
Killed at any moment, the next start goes on from the recorded state and reads at most one chunk again.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Final

import psycopg
from pydantic import BaseModel

from infra import kafka, log, metrics
from infra.control import ensure_control_schema, owners
from infra.positions import HandoverState, Positions, SnapshotState, SourceState, StreamState, handover_key, record_key
from infra.postgres import connect, translated
from infra.registry import IncompatibleSchema, open_registry
from infra.settings import Settings
from infra.topics import STATE, ensure_topic, largest_records
from producers import ownership, preflight, slots, startup
from producers.capture import Capture
from producers.chunks import Unseen
from producers.feed import TableFeed
from producers.in_progress import Incoming
from producers.publication import ensure_publication, published_tables
from producers.relay import Relay
from producers.replication import ReplicationStream, SlotInUse
from producers.replication_command import Streaming
from producers.requests import read_request
from producers.schema_changes import TableStopped
from producers.snapshot import TableGone, current_snapshot, next_xid, plan_chunk, read_chunk
from producers.spill import SpillDirectory
from producers.table_catalog import TableWatch
from producers.tables import captured_tables
from schemas import codec
from schemas.errors import Fenced, Malformed, Unavailable
from schemas.positions import Lsn
from schemas.topics import positions_topic

_FRAMES: Final = 5_000
"""Frames handled between two looks at the clock, the stop event and the connection."""

_COMMIT_EVENTS: Final = 50_000
_COMMIT_SECONDS: Final = 0.05
"""Under load a Kafka transaction ends after this many events or seconds; with nothing more to read, at once."""

_COPY_SECONDS: Final = 5.0
"""How long the stream stands at most for a copy phase, so that changes stay fresh while tables are copied."""

_BARRIER_SECONDS: Final = 1.0
_HEARTBEAT_SECONDS: Final = 5.0
_TAKEOVER_SECONDS: Final = 15.0
_BACKOFF: Final = (0.5, 1, 2, 5, 10)

_PATIENCE: Final = "SET lock_timeout = '2s'"
"""For a chunk, while which the stream stands; not for what a start has to wait for."""

_SESSION: Final = """
SET synchronous_commit = local;
SET statement_timeout = 0;
SET row_security = off
"""
"""Heartbeats don't wait for a standby that is down; no role's own limit ends a long chunk; no row is hidden."""


class ReadAnew(Exception):
    """A table is to be read anew: its source starts again, with the table as it is now."""


def produce(settings: Settings, source: str, stop: threading.Event) -> None:
    """Run the producer of `source` until `stop` is set.

    A server that stops answering is waited for, once everything has worked a first time, and so is the producer of
    a database that gave its tables to this one. Raises what preflight refuses, Fenced when another producer took over,
    and OwnershipMoved when the database has given all its tables away.
    """
    instance = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    lines = log.get(**{log.SOURCE: source})
    attempt = 0
    worked = False
    while not stop.is_set():
        try:
            with Session(settings, source, instance, stop, lines, successor_ends_it=worked) as session:
                worked, attempt = True, 0
                session.work()
        except ReadAnew as request:
            lines.info("starting again to read a table anew", **{log.TABLE: str(request)})
        except Unavailable as error:
            awaited = isinstance(error, ownership.HandoverAwaited)
            if not worked and not awaited:
                raise
            pause = _BACKOFF[min(attempt, 1 if awaited else len(_BACKOFF) - 1)]
            lines.warning("waiting for a server", **{log.REASON: error.problem}, seconds=pause)
            attempt += 1
            stop.wait(pause)
    lines.info("stopped")


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
    ) -> None:
        """With `successor_ends_it`, another producer's record since this one's last raises Fenced."""
        self._settings = settings
        self._database = settings.database(source)
        self._source = source
        self._instance = instance
        self._stop = stop
        self._log = lines
        self._dsn = self._database.dsn.get_secret_value()
        self._slot = startup.slot_name(settings, source, self._database)
        self._system = ""
        self._heartbeat_due = 0.0
        self._logged = 0.0
        self._waits = False
        with ExitStack() as opened:
            kafka.ensure_reachable(settings.kafka)
            self._sql: psycopg.Connection[Any] = opened.enter_context(
                connect(self._dsn, name=f"produce {source}", canonical_text=True)
            )
            with translated(self._dsn):
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
                    self._stream_phase(until=self._heartbeat(), seconds=_BARRIER_SECONDS if self._waits else 0)
                else:
                    self._stream_phase(until=None)

    def _open(self, opened: ExitStack, successor_ends_it: bool) -> None:
        settings, source = self._settings, self._source
        self._sql.execute(_SESSION)
        self._watch = TableWatch(self._sql, self._database.publication, self._log)
        recorded = Positions(settings.prefix, settings.kafka).sources().get(source, SourceState())
        stopped = startup.stopped_tables(self._sql, settings, source, recorded)
        preflight.require(self._sql, source, self._database, self._slot, settings.prefix, leave_out=stopped)
        ensure_control_schema(self._sql, source, self._database.gitlab_schemas)
        tables = captured_tables(self._sql, source, self._database, settings.prefix, leave_out=stopped)
        self._watch.tell(stopped.values())
        self._left_out = stopped
        if not tables:
            raise TableStopped(f"every table of {source} is stopped: {'; '.join(sorted(stopped))}")
        topic = positions_topic(settings.prefix)
        ensure_topic(settings.kafka, topic, partitions=1, config=STATE)
        partitions = {table.name: ensure_topic(settings.kafka, table.topic) for table in tables}
        self._system = startup.system_identifier(self._sql)
        # Once before, so that a start that is refused leaves the producer that runs alone.
        ownership.standing(source, tables, self._standing(successor_ends_it, alone=False), owners(self._sql))
        self._relay = Relay(settings.kafka, f"{settings.prefix}.{source}", topic)
        opened.callback(self._relay.close)
        # Nobody but this process can write the source's records from here on.
        sources = self._standing(successor_ends_it, alone=True)
        state = sources.get(source, SourceState())
        standing = ownership.standing(source, tables, sources, owners(self._sql))
        published = published_tables(self._sql, self._database.publication)
        known = SourceState(state.stream, {**standing.inherited, **state.snapshots})
        snapshots = startup.standing_snapshots(settings, known, standing.here(tables), published)
        if ensure_publication(self._sql, self._database.publication, tables):
            self._log.info("publication set", publication=self._database.publication, tables=len(tables))
        stream = state.stream or self._first_state(
            standing.handover if any(not each.anew for each in snapshots.values()) else None
        )
        # Taken behind publication and slot: what began before may be in neither stream nor an earlier snapshot.
        not_before = next_xid(self._sql)
        registry = open_registry(settings)
        largest = largest_records(settings.kafka, [table.topic for table in tables])
        for table in standing.here(tables):
            if table.name not in snapshots or snapshots[table.name].anew:
                registry.forget(f"{table.topic}-key")
                registry.forget(f"{table.topic}-value")
        self._feeds = [
            TableFeed(
                source,
                table,
                partitions[table.name],
                registry,
                snapshots.get(table.name) or standing.given.get(table.name),
                not_before=not_before,
                largest=largest[table.topic],
                now=partial(self._watch.now, table.relation.oid),
            )
            for table in tables
        ]
        for feed in self._feeds:
            feed.away = feed.table.gitlab_schema in standing.away
        here = [feed for feed in self._feeds if not feed.away]
        if here and all(feed.state.stopped for feed in here):
            # Nothing was skipped yet, so that undoing the change is a way out here.
            reasons = "; ".join(f"{feed.table.name}: {feed.state.stopped}" for feed in here)
            raise TableStopped(f"every table of {source} is stopped ({reasons})")
        self._capture = Capture(self._feeds, stream.position, stream.confirmed_lsn, Unseen(stream.unseen))
        self._capture.commit_ms = stream.ts_ms
        self._claim(state, stopped)
        spills = opened.enter_context(SpillDirectory(self._database.spill_directory))
        self._stream = self._take_slot()
        opened.callback(self._stream.close)
        self._incoming = Incoming(self._stream, spills)
        self._sql.execute(_PATIENCE)
        self._log.info("reading", slot=self._slot, codec=codec.name, **{log.POSITION: str(self._capture.position)})

    def _standing(self, successor_ends_it: bool, *, alone: bool) -> dict[str, SourceState]:
        """Return what is recorded; raises Fenced or SilentGap where this source may not be gone on from."""
        slot = slots.read(self._sql, self._slot)
        if slot is not None and not alone:
            # A commit returns a moment before readers see it, and a producer that runs confirms it at once.
            slot = replace(slot, confirmed_flush=None)
        sources = Positions(self._settings.prefix, self._settings.kafka).sources()
        state = sources.get(self._source, SourceState())
        if successor_ends_it and state.stream and state.stream.instance != self._instance:
            raise Fenced(f"another producer of {self._source} took over: {state.stream.instance}")
        startup.refuse_gaps(state, slot, self._slot, self._system)
        return sources

    def _first_state(self, handover: HandoverState | None) -> StreamState:
        slot = slots.read(self._sql, self._slot)
        if handover is not None:
            return ownership.first_state(self._source, self._instance, self._slot, slot, self._system, handover)
        if slot is not None and slot.confirmed_flush is not None:
            start = slot.confirmed_flush
        else:
            self._log.info("creating the slot; running transactions are waited for", slot=self._slot)
            start = slots.create(self._sql, self._slot, failover=True)
        return startup.first_state(self._source, self._instance, self._slot, self._system, start)

    def _claim(self, state: SourceState, stopped: Mapping[str, SnapshotState]) -> None:
        """Record this process as the source's producer, and the tables as they are captured from now on."""
        captured = {feed.table.name for feed in self._feeds}
        for feed in self._feeds:
            if feed.state.anew:
                feed.read_anew(self._capture.position, feed.state.not_before)
        # A table that is captured no more loses its record: captured again later, it has to be read anew.
        dropped = [(name, None) for name in state.snapshots if name not in captured | stopped.keys()]
        standing = [(feed.table.name, None if feed.away else feed.state) for feed in self._feeds]
        self._commit([*dropped, *stopped.items(), *standing])

    def _take_slot(self) -> ReplicationStream:
        """Open the stream, ending the connection of a producer that was just fenced."""
        deadline = time.monotonic() + _TAKEOVER_SECONDS
        while True:
            try:
                return ReplicationStream(
                    self._dsn,
                    self._slot,
                    self._database.publication,
                    self._capture.confirmed,
                    # Large transactions then wait on this disk, not on the source's, and are here when they commit.
                    streaming=Streaming.ON,
                    application_name=f"headrace {self._source}",
                )
            except SlotInUse as error:
                if time.monotonic() > deadline:
                    raise
                self._log.warning("taking the slot over", slot=self._slot, pid=error.pid)
                if error.pid is not None:
                    self._sql.execute("SELECT pg_terminate_backend(%s)", (error.pid,))
                self._stop.wait(0.1)

    @property
    def _copying(self) -> bool:
        return any(feed.copying for feed in self._feeds)

    def _copy_phase(self) -> None:
        """Copy chunks until the slot holds back too much log, the time is up, or all is copied."""
        deadline = time.monotonic() + _COPY_SECONDS
        bound = self._database.snapshot.max_retained_wal_mb << 20
        while not self._stop.is_set() and time.monotonic() < deadline:
            feed = self._next_to_copy()
            if feed is None:
                return
            try:
                lsn = self._copy_chunk(feed)
            except psycopg.errors.LockNotAvailable:
                self._log.info("a table to copy is locked; going on without it", **{log.TABLE: feed.table.name})
                return
            if lsn is None or lsn - self._capture.confirmed > bound:
                return

    def _next_to_copy(self) -> TableFeed | None:
        """Wait shortly for the barrier; return a table that may be read now, None when there is none.

        No chunk is read before everything that the stream has passed is visible, and everything that began before
        the table was published has ended.
        """
        deadline = time.monotonic() + _BARRIER_SECONDS
        while not self._stop.is_set():
            snapshot, _ = current_snapshot(self._sql)
            visible = self._capture.unseen.visible_in(snapshot)
            ready = [feed for feed in self._feeds if feed.copying and feed.copy.ready]
            for feed in ready:
                if visible and feed.state.not_before <= snapshot.xmin:
                    return feed
            if not ready:
                return None
            if visible or time.monotonic() > deadline:
                self._waits = visible
                self._log.info("a snapshot waits for running transactions to end", xmin=snapshot.xmin)
                return None
            self._stop.wait(0.02)
        return None

    def _copy_chunk(self, feed: TableFeed) -> Lsn | None:
        """Copy the next chunk; return the log position behind it, or None when the table's owner has changed."""
        size = self._database.snapshot.chunk_rows
        bounds = feed.copy.bounds
        try:
            upto = plan_chunk(self._sql, feed.table, bounds, size)
            chunk = read_chunk(self._sql, feed.table, bounds if upto is None else replace(bounds, last=upto))
            # Behind the chunk, which may have shown a key twice that was no key any more.
            self._watch.require(feed)
        except (TableGone, TableStopped) as error:
            self._stop_table(feed, error.problem)
            return None
        if not ownership.owned(feed.table, self._source, owners(self._sql)):
            # Asked after the chunk: its snapshot is of before the change, and so holds in the new owner's log too.
            return None
        try:
            rows = feed.add_chunk(upto, chunk, self._capture.position, size)
        except (TableStopped, IncompatibleSchema, Malformed) as error:
            self._stop_table(feed, error.problem)
            return None
        self._commit([(feed.table.name, feed.state)])
        metrics.COPIED.labels(self._source, feed.table.name).inc(rows)
        done = not feed.copy.unread
        if done or time.monotonic() > self._logged + 2:
            self._logged = time.monotonic()
            self._log.info(
                "table copied" if done else "copying",
                **{log.TABLE: feed.table.name, log.ROWS: feed.state.rows},
                chunks_done=feed.state.chunks_done,
                chunks=feed.state.chunks,
            )
        return chunk.lsn

    def _stop_table(self, feed: TableFeed, reason: str) -> None:
        feed.stop(reason)
        self._commit([(feed.table.name, feed.state)])

    def _stream_phase(self, until: Lsn | None, seconds: float = 0) -> None:
        """Publish the stream's changes until stopped, or until it has passed `until` and some seconds are over.

        With None, until a table has to be copied: a truncate may make a snapshot start again that was just complete.
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
            if pending and (not messages or now > committed + _COMMIT_SECONDS or capture.published >= _COMMIT_EVENTS):
                self._commit()
                committed = now
                if self._copying if until is None else capture.position.commit_lsn >= until and now >= enough:
                    return
            elif not pending:
                committed = now
            if now >= self._heartbeat_due:
                self._heartbeat()
        self._commit()

    def _heartbeat(self) -> Lsn:
        """Write a message into the log and return its position: an idle slot moves on, and the lag can be seen."""
        self._heartbeat_due = time.monotonic() + _HEARTBEAT_SECONDS
        self._watch.look(self._feeds)
        lsn = slots.emit_heartbeat(self._sql)
        self._watch.noted(lsn)
        return lsn

    def _send(self) -> None:
        for feed in self._feeds:
            if feed.waiting:
                self._relay.send(feed.table.topic, feed.take())

    def _commit(self, states: Iterable[tuple[str, SnapshotState | None]] = ()) -> None:
        """Publish what waits, with the position, in one Kafka transaction; then let the slot forget it."""
        capture = self._capture
        self._send()
        self._watch.passed(capture.position.commit_lsn)
        changed: dict[str, SnapshotState | None] = {}
        for content in capture.take_requests():
            changed.update(self._take_request(content))
        changed.update((feed.table.name, feed.state) for feed in capture.settle())
        changed.update(states)
        anew = [name for name, state in changed.items() if state is not None and state.anew]
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
        self._relay.record([*records, (record_key(self._source), self._stream_state())])
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

    def _take_request(self, content: bytes) -> dict[str, SnapshotState]:
        """Note what was asked for, and return it where it is to be recorded of a table that is left out."""
        request = read_request(content)
        feed = next((feed for feed in self._feeds if request and feed.table.name == request.table), None)
        if request is not None and request.anew and request.table in self._left_out:
            return {request.table: self._left_out[request.table].model_copy(update={"anew": True})}
        if request is None or feed is None or feed.away:
            self._log.warning("a request to read a table again names none that is captured here")
            return {}
        self._log.info("asked to read a table again", **{log.TABLE: request.table}, anew=request.anew)
        if request.anew:
            feed.ask_anew()
        else:
            feed.ask(request.range, next_xid(self._sql))
        return {}

    def _stream_state(self) -> StreamState:
        capture = self._capture
        return StreamState(
            source=self._source,
            instance=self._instance,
            slot=self._slot,
            system_identifier=self._system,
            commit_lsn=capture.position.commit_lsn,
            ordinal=capture.position.ordinal,
            confirmed_lsn=capture.confirmed,
            ts_ms=capture.commit_ms,
            unseen=capture.unseen.xids,
        )
