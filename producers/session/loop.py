"""The producer's session: copies tables and follows the stream in alternating phases.

The stream pauses during a copy phase, which reads chunks, and catches up in a stream phase, so that the slot never
retains more than a set amount of WAL. Each phase's records are in Kafka, with the position, before the other begins.
After a kill at any moment, the next start resumes from the recorded state and reads at most two chunks of each worker
again, or small tables of together less than a tenth of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

import psycopg

from infra.postgres.connect import one_line, translated
from infra.schema_registry.topic_registry import IncompatibleSchema
from infra.service import log, metrics
from infra.service.service_state import THIS
from infra.settings.database_login import Address
from infra.settings.model import SnapshotSettings
from infra.state.positions import SnapshotState
from producers.publish.capture import Capture
from producers.publish.table_publisher import TableFeed
from producers.session.commits import Commits, Restart
from producers.session.copy_limits import CopyLimits
from producers.session.copy_phase import Choice, Copied, CopyLog, Turns, Workers
from producers.session.slot_monitor import SlotMonitor
from producers.snapshot.reader import CHUNKS_EACH, TableGone
from producers.source.schema_changes import TableStopped
from producers.source.table_errors import TableBusy
from producers.stream.connection import ReplicationStream
from producers.stream.visibility_gate import Messages
from producers.watch.catalog_watch import TableWatch
from producers.watch.topic_watch import TopicWatch
from schemas.errors import Malformed
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn


@dataclass(frozen=True)
class Timing:
    """The lengths of a session's phases and intervals; times in seconds."""

    frames: int = 5_000
    """Frames handled between two checks of the clock, the stop event and the connection."""
    commit_events: int = 50_000
    commit_seconds: float = 0.05
    """Under load a Kafka transaction ends after this many events or seconds; when the stream is idle, at once."""
    gather_seconds: float = 0.005
    """While changes keep coming, the pause after a Kafka transaction that has all there is to read.

    A broker writes a transaction's markers after it has confirmed the commit. librdkafka, which is refused the next
    transaction before they are written, tries again only 20 ms later. Meanwhile more changes gather, so that Kafka has
    fewer transactions.
    """
    copy_seconds: float = 5.0
    """The longest copy phase, during which the stream pauses; bounds the lag while tables are copied."""
    heartbeat_seconds: float = 5.0


USUAL: Final = Timing()

_LOOK_SECONDS: Final = 0.1
"""How often a session that waits for its workers looks whether it is to stop."""

_SMALL: Final = 1 << 20
"""Bytes of COPY that whole small tables may have together before they are committed."""


@dataclass(frozen=True)
class Parts:
    """The parts of a session. `sql` reads the catalog, `stream` reads the slot, and `workers` read tables.

    `choose` waits briefly and returns a table that may be read now (see producers.session.copy_phase). `beat` writes a
    heartbeat.
    """

    source: str
    address: Address
    settings: SnapshotSettings
    sql: psycopg.Connection[Any]
    stream: ReplicationStream
    incoming: Messages
    feeds: Sequence[TableFeed]
    capture: Capture
    commits: Commits
    choose: Callable[[], Choice]
    workers: Workers
    turns: Turns
    limits: CopyLimits
    beat: Callable[[], Lsn]
    watch: TableWatch
    topic_watch: TopicWatch
    slot_monitor: SlotMonitor
    copy_log: CopyLog


class Session:
    """Copies and streams; every earlier producer of its source was fenced when it was opened."""

    def __init__(self, parts: Parts, stop: threading.Event, timing: Timing) -> None:
        self._parts = parts
        self._stream = parts.stream
        self._feeds = parts.feeds
        self._capture = parts.capture
        self._commits = parts.commits
        self._stop = stop
        self._pace = timing
        self._log = log.get(**{log.SOURCE: parts.source})
        self._heartbeat_due = 0.0
        self._wait_seconds = 0.0
        self._restart: Restart | None = None
        self._small: list[tuple[TableFeed, Copied, float]] = []
        """Chunks that were read and are not committed, each with the time at which its reading began."""

    def work(self) -> Restart | None:
        """Copy and stream until stopped or until another session has to begin; everything read is committed."""
        with translated(self._parts.address):
            while self._running:
                if self._copying:
                    self._wait_seconds = 0.0
                    self._copy_phase()
                    # A copy that waits for running transactions, or is throttled, does not delay the stream.
                    if self._restart is None:
                        self._stream_phase(until=self._heartbeat(), seconds=self._wait_seconds)
                else:
                    self._leave_copy()
                    self._stream_phase(until=None)
        return self._restart

    def _leave_copy(self) -> None:
        self._parts.limits.leave()
        self._parts.workers.leave()

    @property
    def _running(self) -> bool:
        return self._restart is None and not self._stop.is_set()

    @property
    def _copying(self) -> bool:
        return any(feed.copying for feed in self._feeds)

    def _copy_phase(self) -> None:
        """Copy chunks until the slot retains too much WAL, the time is up, or everything is copied."""
        deadline = time.monotonic() + self._pace.copy_seconds
        more = True
        # The stream waits for every chunk: it would drop events of a range that a worker's snapshot does not show.
        while self._running and (more or self._parts.workers.busy):
            more = self._copy_next(deadline, begins=more)
        if self._small and self._restart is None:
            self._commit_chunks()

    def _copy_next(self, deadline: float, *, begins: bool) -> bool:
        """Give an idle worker a chunk if it `begins` and the copy phase's `deadline` is to come, or wait for others.

        Returns whether another chunk may be begun in this copy phase.
        """
        workers = self._parts.workers
        begins &= time.monotonic() < deadline
        if begins and workers.idle:
            choice = self._choose()
            if choice.feed is not None:
                self._begin(choice.feed, deadline)
                return True
            begins = workers.busy
        returned = None
        while returned is None and self._running and workers.busy:
            returned = workers.returned(_LOOK_SECONDS)
        for task, add in returned or ():
            THIS.advance()
            if task.feed.state.stopped:
                continue  # another worker's chunk of it was found to be unreadable
            try:
                begins &= self._within(self._add(task.feed, task.began, partial(add, self._capture.position)))
            except (TableBusy, psycopg.errors.LockNotAvailable) as error:
                self._parts.turns.set_aside(task.feed, one_line(error))
        # These are read while what was added is committed.
        while begins and returned and workers.idle and (feed := self._choose().feed) is not None:
            self._begin(feed, deadline)
        self._commit_enough()
        workers.settled()
        return begins

    def _begin(self, feed: TableFeed, deadline: float) -> None:
        rows = max(1, self._parts.settings.chunk_rows // CHUNKS_EACH)
        try:
            # The stream waits for the last chunk: they should all end with the phase.
            self._parts.workers.begin(feed, rows, deadline - time.monotonic())
        except psycopg.errors.LockNotAvailable as error:
            self._parts.turns.set_aside(feed, one_line(error))

    def _choose(self) -> Choice:
        THIS.advance()
        choice = self._parts.choose()
        self._wait_seconds = choice.seconds if choice.waits else 0.0
        return choice

    def _within(self, lsn: Lsn | None) -> bool:
        """Whether the copy phase may continue after a chunk with this WAL position; None: the chunk was not copied."""
        # A quarter of the limit: the slot releases WAL some time after it is confirmed, and WAL keeps growing.
        bound = self._parts.settings.max_retained_wal_mb << 18
        return lsn is not None and lsn - self._capture.confirmed <= bound

    def _add(self, feed: TableFeed, began: float, copy: Callable[[], Copied | None]) -> Lsn | None:
        """Add a chunk; return the WAL position after it, or None when the table cannot be read any further."""
        try:
            copied = copy()
        except (TableGone, TableStopped, IncompatibleSchema, Malformed) as error:
            feed.stop(error.problem)
            self._commit_chunks([(feed.table.name, feed.state)])
            return None
        if copied is None:
            return None
        self._parts.limits.took(copied.size)
        self._small.append((feed, copied, began))
        return copied.lsn

    def _commit_enough(self) -> None:
        """Commit chunks that were read, unless they are small tables: those share a Kafka transaction.

        Its commit takes longer than their rows.
        """
        enough = self._parts.settings.chunk_rows // 10
        if (
            any(feed.copying for feed, _, _ in self._small)
            or sum(copied.rows for _, copied, _ in self._small) >= enough
            or sum(copied.size for _, copied, _ in self._small) >= _SMALL
        ) and self._small:
            self._commit_chunks()

    def _commit_chunks(self, stopped: Sequence[tuple[str, SnapshotState]] = ()) -> None:
        """Commit the chunks that were read since the last commit, each with its table's state, and `stopped` tables."""
        chunks, self._small = self._small, []
        self._commit([*((feed.table.name, feed.state) for feed, _, _ in chunks), *stopped])
        source = self._parts.source
        for feed, copied, began in chunks:
            counter = metrics.COMPLETED if copied.by_key else metrics.COPIED
            counter.labels(source, feed.table.name).inc(copied.rows)
            metrics.CHUNK_TIME.labels(source).observe(time.monotonic() - began)
            metrics.CHUNKS.labels(source, feed.table.name).set(max(feed.state.chunks, feed.state.chunks_done))
            metrics.CHUNKS_DONE.labels(source, feed.table.name).set(feed.state.chunks_done)
            self._parts.copy_log.copied(feed, copied)

    def _stream_phase(self, until: Lsn | None, seconds: float = 0) -> None:
        """Publish the stream's changes until stopped, or until it has passed `until` and `seconds` have elapsed.

        With None, until a table has to be copied: a truncate may restart a snapshot that was just complete. In any
        case until many rows have to be read by key: only so many can be recorded.
        """
        capture, timing = self._capture, self._pace
        handle = capture.handle
        committed = came = time.monotonic()
        enough = committed + seconds
        ended = 0.0
        while self._running:
            THIS.advance()
            pending = self._commits.pending
            messages = self._parts.incoming.read(timing.frames, 0 if pending else 0.2)
            if not pending:
                came = time.monotonic()
            for message in messages:
                handle(message)
            now = time.monotonic()
            self._commits.send()
            crowded = any(feed.rows_wait for feed in self._feeds)
            full = crowded or now > committed + timing.commit_seconds or capture.published >= timing.commit_events
            if pending and (full or not messages):
                self._commit()
                if self._restart is not None:
                    return
                committed = now
                done = self._copying if until is None else capture.position.commit_lsn >= until and now >= enough
                if done or crowded:
                    return
                if not full and came < ended + timing.gather_seconds:
                    self._stop.wait(timing.gather_seconds)
                    committed = time.monotonic()
                ended = time.monotonic()
            elif not pending:
                committed = now
                # Nothing may come before the next heartbeat, which is later than a limit of the copy allows.
                reached = until is not None and capture.position.commit_lsn >= until and now >= enough
                if reached and not self._commits.pending:
                    return
            hurries = self._parts.slot_monitor.hurries(self._stream.received)
            if now >= self._heartbeat_due or capture.met_stranger or hurries:
                self._heartbeat()
        if self._restart is None:
            self._commit()

    def _heartbeat(self) -> Lsn:
        """Write a heartbeat and return its position: it advances an idle slot and shows the lag."""
        parts = self._parts
        self._heartbeat_due = time.monotonic() + self._pace.heartbeat_seconds
        self._capture.met_stranger = False
        parts.watch.look(self._feeds)
        parts.topic_watch.look(self._feeds)
        parts.slot_monitor.look(parts.sql, self._capture.position.commit_lsn)
        try:
            lsn = parts.beat()
        except psycopg.errors.LockNotAvailable:
            self._log.warning("heartbeat skipped", **{log.REASON: "headrace.heartbeat is locked"})
            return self._capture.position.commit_lsn
        parts.watch.noted(lsn)
        return lsn

    def _commit(self, states: Iterable[tuple[str, SnapshotState | None]] = ()) -> None:
        throttled_by = self._parts.limits.throttled_by
        self._restart = self._commits.commit(states, confirm=self._stream.confirm, throttled_by=throttled_by)
