"""Decides which stream events are published during a snapshot: pure rules, no I/O.

A table is copied in chunks in key order while the stream continues. Each chunk is read under its own database snapshot,
and its rows are published at the stream's current position. An event of the stream, by its key:

- in a range that is not copied yet: dropped, since a later chunk includes its effect;
- in a copied range: dropped if and only if the chunk's snapshot saw its transaction;
- committed at or after the LSN read after the chunk's snapshot: published, since that snapshot cannot
  have seen it. Once the stream is there, the chunk's snapshot is forgotten and adjacent settled chunks merge.

A barrier ensures the first rule: no chunk is read before every transaction that the stream has passed is visible
(`Unseen`), and the stream is not read while a chunk is. A commit is decoded as soon as its WAL is flushed, but becomes
visible slightly later.

Several workers may read chunks at once: ranges need not be copied in the order of their keys, and a range that is being
read is no other worker's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import replace

from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn
from schemas.xid_snapshot import Moment, Snapshot

Key = tuple[int | bytes, ...]
"""A row's key; compares as the database sorts it."""


@dataclass(frozen=True)
class Chunk:
    """A copied range of keys, `after` exclusive to `upto` inclusive; None is the end of the key space.

    `moment`, when its rows were read, is None once the stream has passed it.
    """

    after: Key | None
    upto: Key | None
    moment: Moment | None = None

    def passed(self, lsn: Lsn) -> bool:
        """Whether a stream at `lsn` has passed the chunk, which remembers its moment."""
        return self.moment is not None and self.moment.lsn <= lsn


class TableChunks:
    """The copied ranges of one table. Chunks never overlap."""

    def __init__(self, chunks: Iterable[Chunk] = ()) -> None:
        self._chunks: list[Chunk] = []
        self._uppers: list[Key] = []
        for chunk in chunks:
            self.copied(chunk)

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """In key order."""
        return tuple(self._chunks)

    def gap(self, reading: Collection[Chunk] = ()) -> Chunk | None:
        """Return the first range that is neither copied nor among those being read; None if there is no such range."""
        upto: Key | None = None
        for chunk in _in_order([*self._chunks, *reading]) if reading else self._chunks:
            if chunk.after != upto:
                return Chunk(upto, chunk.after)
            upto = chunk.upto
            if upto is None:
                return None
        return Chunk(upto, None)

    @property
    def complete(self) -> bool:
        """Whether the whole key space is copied."""
        return self.gap() is None

    @property
    def settled(self) -> bool:
        """Whether all is copied and the stream has passed every chunk, so that all events are published."""
        return self.complete and all(chunk.moment is None for chunk in self._chunks)

    def copied(self, chunk: Chunk) -> None:
        """Add a chunk just published."""
        self._set(_in_order([*self._chunks, chunk]))

    def passed(self, lsn: Lsn) -> bool:
        """Note that the stream is at `lsn`; return whether that settled a chunk."""
        if not any(chunk.passed(lsn) for chunk in self._chunks):
            return False
        merged: list[Chunk] = []
        for each in self._chunks:
            chunk = replace(each, moment=None) if each.passed(lsn) else each
            if merged and merged[-1].moment is None and chunk.moment is None and merged[-1].upto == chunk.after:
                merged[-1] = Chunk(merged[-1].after, chunk.upto)
            else:
                merged.append(chunk)
        self._set(merged)
        return True

    def restart(self) -> None:
        """Forget everything: the table was truncated, and TRUNCATE is not MVCC-safe."""
        self._set([])

    def publishes(self, key: Key, xid: int, commit_lsn: Lsn) -> bool:
        """Whether the event of transaction `xid` for the row `key` is published."""
        index = bisect_left(self._uppers, key)
        if index == len(self._chunks):
            return False
        chunk = self._chunks[index]
        if chunk.after is not None and key <= chunk.after:
            return False
        return chunk.moment is None or not chunk.moment.shows(xid, commit_lsn)

    def _set(self, chunks: list[Chunk]) -> None:
        self._chunks = chunks
        # A last chunk without an upper bound has no entry: bisect then points at it for every greater key.
        self._uppers = [chunk.upto for chunk in chunks if chunk.upto is not None]


def _in_order(chunks: Iterable[Chunk]) -> list[Chunk]:
    return sorted(chunks, key=lambda each: (each.after is not None, each.after or ()))


class Unseen:
    """The transactions that the stream has passed and that may not be visible yet."""

    def __init__(self, xids: Iterable[int] = ()) -> None:
        self._xids = set(xids)

    @property
    def xids(self) -> tuple[int, ...]:
        """The 32-bit ids, sorted."""
        return tuple(sorted(self._xids))

    def passed(self, xid: int) -> None:
        """Note a transaction that the stream has passed."""
        self._xids.add(xid)

    def visible_in(self, snapshot: Snapshot) -> bool:
        """Forget the transactions that `snapshot` sees, as every later one does; return whether none is left."""
        self._xids = {xid for xid in self._xids if not snapshot.sees(xid)}
        return not self._xids
