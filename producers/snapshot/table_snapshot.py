"""Tracks the snapshot of one table: its progress, the rules for its events, and the record of both. No I/O.

The first snapshot of a table whose keys can be compared here follows `producers.snapshot.chunk_rules`; every other copy
follows `producers.snapshot.resnapshot_rules`. A copy by the latter into an empty topic publishes no event that its
first chunk's snapshot saw: a row missing from the chunk may have been deleted without an event, for example while the
table was not in the publication. A truncate ends every copy: the stream has all later rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from infra.state.positions import ChunkState, IncompleteState, RangeState, RereadState, SnapshotState
from producers.snapshot.chunk_rules import Chunk, Key, TableChunks
from producers.snapshot.incomplete_rows import IncompleteRows
from producers.snapshot.resnapshot_rules import KeyRange, RememberedChunk, Reread, Texts, pack_keys, united, unpack_keys
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn
from schemas.xid_snapshot import Moment

Comparable = Callable[[tuple[bytes, ...]], Key]
"""Converts a key's texts to a form that compares as the database sorts it."""


@dataclass(frozen=True)
class Bounds:
    """The keys to read next: from `first`, after `after`, up to and including `last`.

    With `keys`, only these. From a partitioned table, only rows in `partitions`, given by oid: changes of other
    partitions are not published yet, so a row deleted from one meanwhile would stay in the topic.
    """

    first: Texts | None = None
    after: Texts | None = None
    last: Texts | None = None
    partitions: tuple[int, ...] = ()
    keys: tuple[Texts, ...] = ()


class TableCopy:
    """The copy of one table; `state` reflects every change."""

    def __init__(self, state: SnapshotState, comparable: Comparable | None) -> None:
        """`comparable` is None if the table's keys cannot be compared here."""
        self._state = state
        self._rows_changed = False
        self._comparable = comparable
        self._reread: Reread | None = None
        self._chunks = TableChunks([])
        self._reading: dict[Bounds, Chunk | None] = {}
        """The range of each read that a worker has begun; None: no other worker may read the table meanwhile."""
        self.incomplete = IncompleteRows(state.incomplete)
        self._load(state)

    @property
    def state(self) -> SnapshotState:
        """The state to record for the table."""
        if self._rows_changed:
            self._rows_changed = False
            self.note(incomplete=self.incomplete.state)
        return self._state

    @property
    def ready(self) -> bool:
        """Whether the table's state allows reading a chunk now, next to those that workers read."""
        incomplete = self.incomplete
        if self._reread is None:
            # Rows that are read by key before the stream continues have their turn once no chunk is read.
            if self._reading and (self._alone or (incomplete.many and incomplete.remembered is None)):
                return False
            return self._chunks.gap(self._ranges) is not None
        # Two chunks with the same key have to be published at different positions.
        return not self._reading and self._reread.ready and incomplete.remembered is None

    def rows_due(self, now: float) -> bool:
        """Whether rows are to be read by key now; see IncompleteRows.due."""
        return not self._reading and self.remembered is None and self.incomplete.due(now, copying=self.ready)

    @property
    def _alone(self) -> bool:
        return None in self._reading.values()

    @property
    def _ranges(self) -> list[Chunk]:
        return [chunk for chunk in self._reading.values() if chunk is not None]

    @property
    def unread(self) -> bool:
        """Whether rows are left to read."""
        return not (self._chunks.complete if self._reread is None else self._reread.read)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to read, or to remember during a re-snapshot."""
        return self._chunks.complete if self._reread is None else self._reread.complete

    @property
    def judging(self) -> bool:
        """Whether events have to be compared with the snapshot."""
        return self._reread is not None or not self._chunks.settled or self.incomplete.remembered is not None

    @property
    def remembered(self) -> RememberedChunk | None:
        """The chunk whose keys are remembered."""
        return None if self._reread is None else self._reread.chunk

    @property
    def remembers(self) -> bool:
        """Whether chunks have to be added with their keys."""
        return self._reread is not None

    @property
    def whole(self) -> bool:
        """Whether the copy is of the whole table."""
        return self._reread is None or self._reread.range == KeyRange()

    @property
    def bounds(self) -> Bounds:
        """The bounds of the next rows to read: the first that are neither copied nor being read."""
        partitions = self._partitions
        if self._reread is not None:
            range_ = self._reread.range
            if range_.partition is not None:
                partitions = (range_.partition,)
            return Bounds(range_.first, self._reread.after, range_.last, partitions)
        gap = self._chunks.gap(self._ranges)
        assert gap is not None, "all rows are copied"
        return Bounds(after=_texts(gap.after), last=_texts(gap.upto), partitions=partitions)

    @property
    def bounds_of_rows(self) -> Bounds:
        """The rows to read by key."""
        return Bounds(partitions=self._partitions, keys=self.incomplete.next_keys)

    @property
    def _partitions(self) -> tuple[int, ...]:
        return tuple(each.oid for each in self.state.partitions)

    def begin(self, bounds: Bounds) -> None:
        """Note that a worker reads these bounds; until `end` they are no other worker's."""
        alone = self._reread is not None or bool(bounds.keys)
        self._reading[bounds] = None if alone else self._range(bounds, bounds.last)

    def planned(self, bounds: Bounds, upto: Texts) -> None:
        """Note that the worker reads only up to and including `upto`: others may read the rest."""
        if self._reading[bounds] is not None:
            self._reading[bounds] = self._range(bounds, upto)

    def end(self, bounds: Bounds) -> None:
        """Note that the worker no longer reads these bounds: what it did not read is read again."""
        del self._reading[bounds]

    def _range(self, bounds: Bounds, upto: Texts | None, moment: Moment | None = None) -> Chunk:
        return Chunk(self._key_or_end(bounds.after), self._key_or_end(upto), moment)

    def copied(self, bounds: Bounds, upto: Texts | None, moment: Moment, keys: Iterable[bytes], rows: int) -> None:
        """Note that the chunk from the start of its `bounds` to `upto` (None: to their end) is published.

        `keys` are the message keys of its rows, needed only if it `remembers`.
        """
        if self._reread is not None:
            self._reread = self._reread.copied(upto, RememberedChunk(frozenset(keys), moment))
        else:
            self._chunks.copied(self._range(bounds, bounds.last if upto is None else upto, moment))
        self._update(rows=self.state.rows + rows, chunks_done=self.state.chunks_done + 1)

    def note(self, **changes: object) -> None:
        """Change recorded state other than the copy's progress."""
        self._state = self._state.model_copy(update=changes)

    def expect(self, chunks: int) -> None:
        """Record the expected number of chunks, for progress reports."""
        done = self.state.chunks_done
        self._update(chunks=max(done + 1, chunks) if self.unread else done)

    def passed(self, lsn: Lsn) -> bool:
        """Note that the stream is at `lsn`; return whether that changed the state."""
        of_rows = self.incomplete.passed(lsn)
        self._rows_changed |= of_rows
        return self._copy_passed(lsn) or of_rows

    def _copy_passed(self, lsn: Lsn) -> bool:
        if self._reread is None:
            if not self._chunks.passed(lsn):
                return False
            if self._chunks.settled:
                self._finish()
        else:
            after = self._reread.passed(lsn)
            if after is self._reread:
                return False
            self._reread = after
            self.note(from_nothing=False)
            if after.complete:
                self._finish()
        self._update()
        return True

    def truncated(self) -> None:
        """Note that the stream truncated the table: the topic gets all later rows, and nothing is left to copy.

        No other session can have had changes of the table in progress, and TRUNCATE is not MVCC-safe.
        """
        self._chunks = TableChunks([Chunk(None, None)])
        self._reread = None
        self.incomplete = IncompleteRows(IncompleteState())
        self._rows_changed = True
        self._update(asked=(), from_nothing=False)

    def leaves_out(self, key: Texts) -> None:
        """Note that the last record of a key omits a value and was published."""
        self.incomplete.note(key)
        self._rows_changed = True

    def read_rows(self, keys: Iterable[Texts], chunk: RememberedChunk, now: float) -> None:
        """Note that the rows of `keys` are published as read in a chunk; see IncompleteRows.read."""
        self.incomplete.read(keys, chunk, now)
        self._rows_changed = True

    def repeat_for_rows(self, not_before: int) -> None:
        """Re-snapshot the table, since too many rows are incomplete to read them by key."""
        self.incomplete.forget_keys()
        self._rows_changed = True
        self.repeat(not_before)

    def ask(self, range_: KeyRange, not_before: int) -> None:
        """Re-snapshot a range after the current copy; do nothing if the first snapshot will read it anyway.

        A partition's rows are read in any case: earlier chunks may predate its attachment. `not_before` must be above
        every transaction that has begun, unless a copy is under way.
        """
        if self.state.done or range_.partition is not None:
            self._ask(range_, not_before)

    def repeat(self, not_before: int) -> None:
        """Re-snapshot the table after the current copy, even if that is the first.

        For rows that changed without events: any chunk may have been read before the change.
        """
        self._ask(KeyRange(), not_before)

    def _ask(self, range_: KeyRange, not_before: int) -> None:
        if self.state.done and self._reread is None and self._chunks.settled:
            self._reread = Reread(range_)
            self._update(rows=0, chunks_done=0, chunks=0, not_before=not_before)
            return
        waiting = tuple(map(_key_range, self.state.asked))
        if range_ in waiting:
            return
        asked = united((*waiting, range_), None if self._comparable is None else self._key)
        self._update(asked=tuple(map(_range_state, asked)))
        if range_.partition is not None:  # its events were not published so far
            self.note(not_before=not_before)

    def from_scratch(self, not_before: int) -> None:
        """Restart the copy from scratch: the topic is emptied at the stream's current position."""
        state = self.state
        fresh = SnapshotState(
            source=state.source,
            table=state.table,
            topic=state.topic,
            not_before=not_before,
            columns=state.columns,
            partitions=state.partitions,
            partitions_seen=state.partitions_seen,
            form=state.form,
            published=state.published,
            order=state.order,
            topic_partitions=state.topic_partitions,
            registered=state.registered,
        )
        self._load(fresh)
        self._update()

    def publishes(self, texts: tuple[bytes, ...], key: Callable[[], bytes], xid: int, commit_lsn: Lsn) -> bool:
        """Whether an event is published; `key` returns the row's message key."""
        if self.incomplete.remembered is not None and not self.incomplete.publishes(key(), xid, commit_lsn):
            return False
        if self._reread is not None:
            chunk = self._reread.chunk
            if self._state.from_nothing:
                return chunk is not None and not chunk.moment.shows(xid, commit_lsn)
            return chunk is None or chunk.publishes(key(), xid, commit_lsn)
        return self._comparable is None or self._chunks.publishes(self._comparable(texts), xid, commit_lsn)

    def _load(self, state: SnapshotState) -> None:
        self._state = state
        self.incomplete = IncompleteRows(state.incomplete)
        self._rows_changed = False
        self._chunks = TableChunks(
            Chunk(
                self._key_or_end(each.after),
                self._key_or_end(each.upto),
                Moment.recorded(each.snapshot, each.lsn),
            )
            for each in state.copied
        )
        self._reread = None
        if state.reread is not None:
            self._reread = _loaded(state.reread)
        elif self._comparable is None and not state.done:
            self._reread = Reread()
            self._update(from_nothing=True)

    def _finish(self) -> None:
        """End a copy and start the next requested one, if any."""
        self._chunks = TableChunks([Chunk(None, None)])
        self._reread = None
        if self.state.asked:
            range_, *later = self.state.asked
            self._reread = Reread(_key_range(range_))
            self._update(rows=0, chunks_done=0, chunks=0, asked=tuple(later))

    def _update(self, **changes: object) -> None:
        copied = tuple(
            ChunkState(
                after=_texts(chunk.after),
                upto=_texts(chunk.upto),
                snapshot=str(chunk.moment.snapshot) if chunk.moment else None,
                lsn=chunk.moment.lsn if chunk.moment else None,
            )
            for chunk in self._chunks.chunks
        )
        done = self._chunks.complete or (self._reread is not None and (self.state.done or self._reread.read))
        recorded = {"done": done, "copied": copied, "reread": _recorded(self._reread), **changes}
        self._state = self._state.model_copy(update=recorded)

    def _key_or_end(self, texts: Texts | None) -> Key | None:
        return None if texts is None else self._key(texts)

    def _key(self, texts: Texts) -> Key:
        assert self._comparable is not None
        return self._comparable(tuple(text.encode() for text in texts))


def _texts(key: Key | None) -> Texts | None:
    return None if key is None else tuple(part.decode() if isinstance(part, bytes) else str(part) for part in key)


def _loaded(state: RereadState) -> Reread:
    moment = Moment.recorded(state.snapshot, state.lsn)
    chunk = None if moment is None else RememberedChunk(unpack_keys(state.keys), moment)
    return Reread(_key_range(state.range), state.after, state.read, chunk)


def _key_range(state: RangeState) -> KeyRange:
    return KeyRange(state.first, state.last, state.partition)


def _range_state(range_: KeyRange) -> RangeState:
    return RangeState(first=range_.first, last=range_.last, partition=range_.partition)


def _recorded(reread: Reread | None) -> RereadState | None:
    if reread is None:
        return None
    chunk = reread.chunk
    return RereadState(
        range=_range_state(reread.range),
        after=reread.after,
        read=reread.read,
        snapshot=str(chunk.moment.snapshot) if chunk else None,
        lsn=chunk.moment.lsn if chunk else None,
        keys=pack_keys(chunk.keys) if chunk else "",
    )
