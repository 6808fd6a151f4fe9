"""Steps of the copy phase: choosing the next table, reading its next chunk, and logging progress.

Nothing here commits: rows that were read wait in the table's feed until the producer publishes them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import psycopg

from infra.postgres.control import owners
from infra.postgres.copy_out import LineTooLong
from infra.postgres.moments import current_moment
from infra.service import log
from infra.state.positions import SnapshotState
from producers.publish.table_publisher import TableFeed
from producers.session import handover
from producers.snapshot.chunk_readers import ChunkReaders, Planned
from producers.snapshot.chunk_rules import Unseen
from producers.snapshot.reader import CHUNK_BYTES, ChunkRows, read_chunk
from producers.snapshot.resnapshot_rules import Texts
from producers.snapshot.table_snapshot import Bounds
from producers.source.schema_changes import TableStopped
from producers.source.table_errors import TableBusy, judged
from producers.watch.catalog_watch import TableWatch
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn, Position

BARRIER_SECONDS: Final = 1.0
"""How long the stream pauses for transactions that have to become visible before a chunk may be read."""

_PROGRESS_SECONDS: Final = 2.0

_ASIDE_SECONDS: Final = (0.5, 1.0, 2.0, 5.0)
"""How long a table that cannot be read now is set aside, the first time, the second, …"""
_ASIDE_LOGGED_SECONDS: Final = 30.0

_AIM: Final = 0.75
"""The share of a chunk's maximum bytes for which the next chunk is planned: row sizes differ."""


@dataclass(frozen=True)
class Choice:
    """The table to read next, None when no table can be read now.

    `waits` when only old transactions, other sessions' locks or a limit prevent it: the stream need not pause for
    those, and another table is chosen after so many `seconds`.
    """

    feed: TableFeed | None
    waits: bool = False
    seconds: float = BARRIER_SECONDS


@dataclass(frozen=True)
class Copied:
    """A chunk that was read: its rows, the bytes that COPY sent, and the WAL position noted after it.

    `by_key`: not a chunk of a snapshot, but rows whose last record left out a value.
    """

    rows: int
    size: int
    lsn: Lsn
    by_key: bool = False


class Turns:
    """Tracks which tables are set aside and until when, and how many rows of each table the next chunk should have.

    A chunk is planned for at most `chunk_bytes`.
    """

    def __init__(self, lines: log.Log, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._log = lines
        self._chunk_bytes = chunk_bytes
        self._aside: dict[str, tuple[float, int]] = {}
        self._logged: dict[str, float] = {}
        self._rows: dict[str, int] = {}
        self._seconds_per_row: dict[str, float] = {}

    def ready(self, feed: TableFeed) -> bool:
        """Whether the table may be tried now."""
        until, _ = self._aside.get(feed.table.name, (0.0, 0))
        return time.monotonic() >= until

    def set_aside(self, feed: TableFeed, reason: str) -> None:
        """Skip a table for a while, unless it is skipped already; other tables continue."""
        if not self.ready(feed):
            return  # another worker found the same
        now, table = time.monotonic(), feed.table.name
        _, times = self._aside.get(table, (0.0, 0))
        self._aside[table] = now + _ASIDE_SECONDS[min(times, len(_ASIDE_SECONDS) - 1)], times + 1
        if now >= self._logged.get(table, 0.0):
            self._logged[table] = now + _ASIDE_LOGGED_SECONDS
            self._log.warning("table cannot be read now", **{log.TABLE: table, log.REASON: reason})

    def rows(self, feed: TableFeed, most: int, left: float = math.inf) -> int:
        """Return how many rows, of at most `most`, the next chunk is planned for.

        It is smaller, down to a quarter, if it would take longer than the seconds that are `left`.
        """
        full = min(most, self._rows.get(feed.table.name, most))
        seconds = full * self._seconds_per_row.get(feed.table.name, 0.0)
        return full if seconds <= max(0.0, left) else max(1, full // 4, int(full * left / seconds))

    def took(self, feed: TableFeed, rows: int, size: int, seconds: float) -> None:
        """Note a chunk that was read, of so many rows and bytes, in so many seconds; the next one is planned by it."""
        self._aside.pop(feed.table.name, None)
        self._logged.pop(feed.table.name, None)
        if rows:
            self._rows[feed.table.name] = max(1, int(self._chunk_bytes * _AIM * rows / max(1, size)))
            self._seconds_per_row[feed.table.name] = seconds / rows


def choose(
    connection: psycopg.Connection[Any],
    feeds: Sequence[TableFeed],
    turns: Turns,
    unseen: Unseen,
    stop: threading.Event,
    lines: log.Log,
    *,
    limited: float = 0,
) -> Choice:
    """Wait briefly for the barrier, and return a table that may be read now.

    No chunk is read before everything that the stream has passed is visible, and every transaction that began before
    the table was published has ended. With `limited`, for so many seconds only rows are read that have to be read by
    key.
    """
    deadline = time.monotonic() + BARRIER_SECONDS
    while not stop.is_set():
        snapshot = current_moment(connection).snapshot
        visible = unseen.visible_in(snapshot)
        waiting = (feed for feed in feeds if feed.copying and (feed.rows_due if limited else feed.readable))
        found, ready = False, False
        # Not all of a thousand tables for each one that is copied: the first that may be read ends the search.
        for feed in waiting:
            found = True
            if turns.ready(feed):
                ready = True
                if visible and (feed.rows_due or feed.state.not_before <= snapshot.xmin):
                    return Choice(feed)
        if not found and limited:
            return Choice(None, waits=True, seconds=min(limited, BARRIER_SECONDS))
        if not ready:
            return Choice(None, waits=found)
        if visible or time.monotonic() > deadline:
            lines.info("snapshot waiting for running transactions", xmin=snapshot.xmin)
            return Choice(None, waits=visible)
        stop.wait(0.02)
    return Choice(None)


@dataclass(eq=False)
class ChunkTask:
    """A chunk of a table to read next, of about so many `rows`, or rows that have to be read by key.

    `began` is when its rows were asked for.
    """

    feed: TableFeed
    bounds: Bounds
    rows: int
    by_key: bool
    began: float


class _Unreadable(Exception):
    """What an error of the server means for the table that was read; it is the cause."""

    def __init__(self, judged_as: TableBusy | TableStopped) -> None:
        super().__init__(judged_as.problem)
        self.judged_as = judged_as


class ChunkSteps:
    """The steps of copying a chunk: choosing it, reading it, adding its rows to the table's feed.

    Only `read` is for any thread, with a connection that no other thread uses.
    """

    def __init__(self, watch: TableWatch, turns: Turns, most: int = CHUNK_BYTES) -> None:
        """`most` is as for producers.snapshot.reader.read_chunk."""
        self._watch = watch
        self._turns = turns
        self._most = most

    def next(self, feed: TableFeed, rows: int, left: float) -> ChunkTask:
        """Return the next chunk of at most about `rows` rows, smaller if more than `left` seconds would be needed."""
        if not feed.state.form.columns:
            # A table that came back from another owner: its catalog entry has to be read before its rows.
            self._watch.begin([feed])
        by_key = feed.rows_due
        bounds = feed.copy.bounds_of_rows if by_key else feed.copy.bounds
        return ChunkTask(feed, bounds, self._turns.rows(feed, rows, left), by_key, time.monotonic())

    def read(
        self,
        task: ChunkTask,
        connection: psycopg.Connection[Any],
        planned: Callable[[Texts | None], object],
        last: Texts | None = None,
    ) -> ChunkRows | None:
        """Read a chunk, no further than the key `last`; None when the table's owner has changed.

        Its errors are for `add`.
        """
        feed = task.feed
        bounds = task.bounds if last is None else replace(task.bounds, last=last)

        def begins(upto: Texts | None) -> None:
            planned(upto)  # may wait
            task.began = time.monotonic()

        try:
            chunk = read_chunk(
                connection,
                feed.table,
                bounds,
                task.rows,
                longest=feed.longest_line,
                most=self._most,
                planned=begins,
            )
        except LineTooLong as error:
            raise TableStopped(f"a row has {error.size} bytes, but its topic accepts {feed.largest}") from error
        except (psycopg.Error, UnicodeError) as error:
            if (of_the_table := judged(connection, error)) is None:
                raise
            raise _Unreadable(of_the_table) from error
        if chunk.upto is None and last is not None:
            chunk = replace(chunk, upto=last)
        # After the chunk: if the key was dropped meanwhile, the chunk may have had one key twice.
        self._watch.require(feed, connection)
        # Checked after the chunk: its snapshot is from before the change of owner, and so valid for the new owner too.
        return chunk if handover.owned(feed.table, feed.source, owners(connection)) else None

    def add(self, task: ChunkTask, position: Position, result: Callable[[], ChunkRows | None]) -> Copied | None:
        """Add what `read` returned, the `result`, to the feed, just after a position of the stream.

        Returns None when the table's owner or the right to read it has changed. Raises TableBusy when the table cannot
        be read now, and TableGone, TableStopped, IncompatibleSchema or Malformed when it cannot be published any
        further.
        """
        feed = task.feed
        try:
            chunk = result()
        except _Unreadable as error:
            if self._watch.hides(feed):
                return None
            if isinstance(error.judged_as, TableStopped) and self._watch.differs(feed):
                # The last key of the previous chunk may no longer be a value of its type. The next look decides.
                raise TableBusy(f"changed meanwhile: {error.judged_as.problem}") from error.__cause__
            raise error.judged_as from error.__cause__
        if chunk is None:
            return None
        size, lsn = len(chunk.data), chunk.moment.lsn
        if task.by_key:
            self._turns.took(feed, 0, 0, 0.0)  # rows with large values do not predict the next chunk's
            return Copied(feed.add_rows(task.bounds.keys, chunk, position), size, lsn, by_key=True)
        self._turns.took(feed, chunk.rows, size, time.monotonic() - task.began)
        full = task.rows if chunk.upto is None else chunk.rows
        return Copied(feed.add_chunk(chunk.upto, chunk, position, full, task.bounds), size, lsn)


class Workers:
    """Copies chunks over connections of their own, at the same time; opened at the first chunk, until `leave`."""

    def __init__(self, steps: ChunkSteps, readers: Callable[[], ChunkReaders[ChunkTask]]) -> None:
        self._steps = steps
        self._open = readers
        self._readers: ChunkReaders[ChunkTask] | None = None

    @property
    def idle(self) -> bool:
        """Whether another chunk may be begun."""
        return self._readers is None or self._readers.idle

    @property
    def busy(self) -> bool:
        """Whether a chunk was begun and not `returned`."""
        return self._readers is not None and self._readers.busy

    def begin(self, feed: TableFeed, rows: int, left: float) -> None:
        """Give the next chunk of a table, of at most about `rows` rows or about `left` seconds, to an idle worker.

        It reads the rows once the last chunk but one that it returned is `settled`.
        """
        task = self._steps.next(feed, rows, left)
        self._readers = self._readers or self._open()
        feed.copy.begin(task.bounds)
        self._readers.begin(task, partial(self._steps.read, task))

    def returned(self, seconds: float) -> list[tuple[ChunkTask, Callable[[Position], Copied | None]]] | None:
        """Return the chunks that workers have read, each with what adds it to its feed as ChunkSteps.add does.

        None if nothing happened within `seconds`. If the end of a chunk is known now, the rest of its table may be
        read by others, and there may be no chunk.
        """
        news = self._readers.news(seconds) if self._readers is not None else ()
        ended: list[tuple[ChunkTask, Callable[[Position], Copied | None]]] = []
        for task, what in news:
            if isinstance(what, Planned):
                task.feed.copy.planned(task.bounds, what.upto)
            else:
                task.feed.copy.end(task.bounds)
                ended.append((task, partial(self._steps.add, task, result=what.result)))
        return ended if news else None

    def settled(self) -> None:
        """Note that the chunks that were `returned` are committed, or are small and will be: the next may be read."""
        if self._readers is not None:
            self._readers.settled()

    def leave(self) -> None:
        """Close the connections: nothing is left to copy, or the session ends."""
        readers, self._readers = self._readers, None
        if readers is not None:
            readers.close()


class CopyLog:
    """Logs the progress of snapshots, and at a start how much of them may be read twice."""

    def __init__(self, lines: log.Log) -> None:
        self._log = lines
        self._logged = 0.0
        self._resumed: set[str] = set()

    def resumed(self, feeds: Iterable[TableFeed], recorded: Mapping[str, SnapshotState], rows: int) -> None:
        """Log the snapshots that an earlier producer began, as `recorded`; a full chunk has `rows`."""
        for feed in feeds:
            before = recorded.get(feed.table.name)
            if before is None or before.from_scratch or not feed.copying or not feed.copy.unread:
                continue
            self._resumed.add(feed.table.name)
            self._log.info("snapshot resumed", **_progress(feed), chunk_rows=rows)

    def copied(self, feed: TableFeed, chunk: Copied) -> None:
        """Log a published chunk: the first after a resume, the last, and one every few seconds."""
        if chunk.by_key:
            return
        if feed.table.name in self._resumed:
            self._resumed.discard(feed.table.name)
            # The earlier producer may have died between reading it and its commit, as may each of its workers.
            self._log.info(
                "first chunk after resume copied",
                **{log.TABLE: feed.table.name, log.ROWS: chunk.rows},
                bytes=chunk.size,
                chunk=feed.state.chunks_done,
            )
        done = not feed.copy.unread
        if done or time.monotonic() > self._logged + _PROGRESS_SECONDS:
            self._logged = time.monotonic()
            self._log.info("table copied" if done else "copying table", **_progress(feed))


def _progress(feed: TableFeed) -> dict[str, object]:
    state = feed.state
    return {
        log.TABLE: state.table,
        log.ROWS: state.rows,
        "chunks_done": state.chunks_done,
        "chunks": state.chunks,
    }
