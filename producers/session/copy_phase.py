"""A step of the copy phase: which table may be read now, its next chunk, and what is told of it.

Nothing here commits: what was read waits in the table's feed until the producer has published it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from infra.postgres.control import owners
from infra.postgres.copy_out import LineTooLong
from infra.service import log
from infra.state.positions import SnapshotState
from producers.publish.table_publisher import TableFeed
from producers.session import handover
from producers.snapshot.chunk_rules import Unseen
from producers.snapshot.reader import CHUNK_BYTES, read_chunk
from producers.source.schema_changes import TableStopped
from producers.source.table_errors import TableBusy, judged
from producers.source.transactions import current_snapshot
from producers.watch.catalog_watch import TableWatch
from schemas.positions import Lsn, Position

BARRIER_SECONDS: Final = 1.0
"""How long the stream stands for transactions that have to become visible before a chunk may be read."""

_TOLD_SECONDS: Final = 2.0

_ASIDE_SECONDS: Final = (0.5, 1.0, 2.0, 5.0)
"""How long a table that cannot be read now is left alone, the first time, the second, …"""
_ASIDE_TOLD_SECONDS: Final = 30.0

_AIM: Final = 0.75
"""Of the bytes that a chunk may have, what the next one is planned for: rows differ."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The table to read next, None when there is none now.

    `waits` when only old transactions, or locks of others, are in its way: the stream need not stand for those.
    """

    feed: TableFeed | None
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Copied:
    """A chunk that was read: its rows, what COPY sent of them in bytes, and the log position noted behind it.

    `by_key` where it is none of a copy, but has rows whose last record left out a value.
    """

    rows: int
    size: int
    lsn: Lsn
    by_key: bool = False


class Turns:
    """Which tables cannot be read now and for how long they are left alone, and how many rows are read at a time."""

    def __init__(self, lines: log.Log) -> None:
        self._log = lines
        self._aside: dict[str, tuple[float, int]] = {}
        self._told: dict[str, float] = {}
        self._rows: dict[str, int] = {}

    def ready(self, feed: TableFeed) -> bool:
        """Whether the table is to be tried now."""
        until, _ = self._aside.get(feed.table.name, (0.0, 0))
        return time.monotonic() >= until

    def set_aside(self, feed: TableFeed, reason: str) -> None:
        """Leave a table alone for a while; the others take their turns."""
        now, table = time.monotonic(), feed.table.name
        _, times = self._aside.get(table, (0.0, 0))
        self._aside[table] = now + _ASIDE_SECONDS[min(times, len(_ASIDE_SECONDS) - 1)], times + 1
        if now >= self._told.get(table, 0.0):
            self._told[table] = now + _ASIDE_TOLD_SECONDS
            self._log.warning(
                "a table cannot be read now; going on without it", **{log.TABLE: table, log.REASON: reason}
            )

    def rows(self, feed: TableFeed, most: int) -> int:
        """Return how many rows, of at most `most`, the next chunk is planned for."""
        return min(most, self._rows.get(feed.table.name, most))

    def took(self, feed: TableFeed, rows: int, size: int) -> None:
        """Note that a chunk was read of so many rows and bytes: the next is planned by that."""
        self._aside.pop(feed.table.name, None)
        self._told.pop(feed.table.name, None)
        if rows:
            self._rows[feed.table.name] = max(1, int(CHUNK_BYTES * _AIM * rows / max(1, size)))


def choose(
    connection: psycopg.Connection[Any],
    feeds: Sequence[TableFeed],
    turns: Turns,
    unseen: Unseen,
    stop: threading.Event,
    lines: log.Log,
) -> Choice:
    """Wait shortly for the barrier, and return a table that may be read now.

    No chunk is read before everything that the stream has passed is visible, and everything that began before
    the table was published has ended.
    """
    deadline = time.monotonic() + BARRIER_SECONDS
    while not stop.is_set():
        snapshot, _ = current_snapshot(connection)
        visible = unseen.visible_in(snapshot)
        waiting = [feed for feed in feeds if feed.copying and feed.readable]
        ready = [feed for feed in waiting if turns.ready(feed)]
        if waiting and not ready:
            return Choice(None, waits=True)
        for feed in ready:
            if visible and (feed.rows_due or feed.state.not_before <= snapshot.xmin):
                return Choice(feed)
        if not ready:
            break
        if visible or time.monotonic() > deadline:
            lines.info("a snapshot waits for running transactions to end", xmin=snapshot.xmin)
            return Choice(None, waits=visible)
        stop.wait(0.02)
    return Choice(None)


def copy_chunk(
    connection: psycopg.Connection[Any],
    watch: TableWatch,
    turns: Turns,
    feed: TableFeed,
    position: Position,
    rows: int,
) -> Copied | None:
    """Read the next chunk, of about `rows` rows at most, into the feed; or rows that are to be read by their key.

    None when the table's owner, or the right to read it, has changed. Raises TableBusy when the table cannot be read
    now, and TableGone, TableStopped, IncompatibleSchema or Malformed when nothing more of it can be published.
    """
    if not feed.state.form.columns:
        # Of a table that came back from another owner: nothing of it may be read before the catalog was.
        watch.begin([feed])
    by_key = feed.rows_due
    planned = turns.rows(feed, rows)
    bounds = feed.copy.bounds_of_rows if by_key else feed.copy.bounds
    try:
        chunk = read_chunk(connection, feed.table, bounds, planned, longest=feed.longest_line)
    except LineTooLong as error:
        raise TableStopped(f"a row has {error.size} bytes, where its topic takes {feed.largest}") from error
    except (psycopg.Error, UnicodeError) as error:
        if (of_the_table := judged(connection, error)) is None:
            raise
        if watch.hides(feed):
            return None
        if isinstance(of_the_table, TableStopped) and watch.differs(feed):
            # The end of the chunk before may be no value of its type any more. The next look says what becomes of it.
            raise TableBusy(f"it has changed meanwhile: {of_the_table.problem}") from error
        raise of_the_table from error
    # Behind the chunk, which may have shown a key twice that was no key any more.
    watch.require(feed)
    if not handover.owned(feed.table, feed.source, owners(connection)):
        # Asked after the chunk: its snapshot is of before the change, and so holds in the new owner's log too.
        return None
    if by_key:
        turns.took(feed, 0, 0)  # rows with large values say nothing of the next chunk's
        return Copied(feed.add_rows(bounds.keys, chunk, position), len(chunk.data), chunk.lsn, by_key=True)
    turns.took(feed, chunk.rows, len(chunk.data))
    full = planned if chunk.upto is None else chunk.rows
    return Copied(feed.add_chunk(chunk.upto, chunk, position, full), len(chunk.data), chunk.lsn)


class CopyLog:
    """Tells how far the tables are copied, and at a start how much of them is read again."""

    def __init__(self, lines: log.Log) -> None:
        self._log = lines
        self._told = 0.0
        self._resumed: set[str] = set()

    def resumed(self, feeds: Iterable[TableFeed], recorded: Mapping[str, SnapshotState], rows: int) -> None:
        """Tell of the snapshots that a producer before this one began, as `recorded`; a full chunk has `rows`."""
        for feed in feeds:
            before = recorded.get(feed.table.name)
            if before is None or before.anew or not feed.copying or not feed.copy.unread:
                continue
            self._resumed.add(feed.table.name)
            self._log.info(
                "going on with a snapshot; at most one chunk is read again",
                **_progress(feed),
                chunk_rows=rows,
            )

    def copied(self, feed: TableFeed, chunk: Copied) -> None:
        """Tell of a chunk that was published: the first behind a start, the last, and one every few seconds."""
        if chunk.by_key:
            return
        if feed.table.name in self._resumed:
            self._resumed.discard(feed.table.name)
            # The producer before may have died between reading it and its commit: no other can have been read twice.
            self._log.info(
                "copied the only chunk that may have been read before",
                **{log.TABLE: feed.table.name, log.ROWS: chunk.rows},
                bytes=chunk.size,
                chunk=feed.state.chunks_done,
            )
        done = not feed.copy.unread
        if done or time.monotonic() > self._told + _TOLD_SECONDS:
            self._told = time.monotonic()
            self._log.info("table copied" if done else "copying", **_progress(feed))


def _progress(feed: TableFeed) -> dict[str, object]:
    state = feed.state
    return {
        log.TABLE: state.table,
        log.ROWS: state.rows,
        "chunks_done": state.chunks_done,
        "chunks": state.chunks,
    }
