"""The rows of a table whose last record leaves out a value, and when they are read by key: pure rules, no I/O.

An update that leaves a large value alone is streamed without it. The value is then in an earlier record of the key,
which compaction removes, and after a change of the key in no record of the new one. The keys of such records are noted,
and recorded in the same Kafka transaction. Their rows are read soon after, and published just after the stream's
current position. The keys that this returned are remembered until the stream has passed the LSN noted after its
snapshot, and events are judged by them as by a chunk's (`producers.snapshot.resnapshot_rules`), whatever else of the
table is copied.

A key is noted only if its record is published, so that a delete to come is published too. A read waits until every
transaction is visible that the stream has passed since the first key was noted
(`producers.snapshot.chunk_rules.Unseen`). Earlier ones need no waiting: one that wrote such a row, or had its key
before, was visible when the next could write it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from infra.state.positions import IncompleteState
from producers.snapshot.resnapshot_rules import RememberedChunk, Texts, pack_keys, unpack_keys
from schemas.positions import Lsn
from schemas.xid_snapshot import Snapshot

READ_SECONDS: Final = 5.0
"""A table's rows are read at most so often, however often they are updated, unless many keys wait."""

_MANY: Final = 1_000
_MANY_BYTES: Final = 64 * 1024
"""So many keys, or bytes of them, are read at once and without waiting; the stream waits for that."""

_TURN_SECONDS: Final = 0.2
"""How long many keys wait for a chunk of their table's copy."""

_MOST: Final = 20_000
_MOST_BYTES: Final = 256 * 1024
"""More of them are not recorded: the whole table is read instead."""


class IncompleteRows:
    """The keys of one table whose last record leaves out a value. Every change is in `state` at once."""

    def __init__(self, state: IncompleteState) -> None:
        self._keys = dict.fromkeys(state.keys)
        self._bytes = sum(map(_size, self._keys))
        self._chunk: RememberedChunk | None = None
        if state.snapshot is not None and state.lsn is not None:
            self._chunk = RememberedChunk(unpack_keys(state.read), Snapshot.parse(state.snapshot), state.lsn)
        self._read_at: float | None = None

    @property
    def state(self) -> IncompleteState:
        """What is recorded of them."""
        chunk = self._chunk
        return IncompleteState(
            keys=tuple(self._keys),
            snapshot=str(chunk.snapshot) if chunk else None,
            lsn=chunk.lsn if chunk else None,
            read=pack_keys(chunk.keys) if chunk else "",
        )

    @property
    def noted(self) -> bool:
        """Whether a row is to be read."""
        return bool(self._keys)

    @property
    def many(self) -> bool:
        """Whether so many keys wait that they are to be read before the stream brings more."""
        return len(self._keys) >= _MANY or self._bytes >= _MANY_BYTES

    @property
    def too_many(self) -> bool:
        """Whether the keys that wait are more than are recorded."""
        return len(self._keys) > _MOST or self._bytes > _MOST_BYTES

    @property
    def remembered(self) -> RememberedChunk | None:
        """The rows that were read last, until the stream has passed them."""
        return self._chunk

    def due(self, now: float, *, copying: bool) -> bool:
        """Whether rows are to be read now; `now` is in seconds of a clock that only moves on.

        With `copying` a chunk of the table could be read as well, which gets its turn.
        """
        if not self._keys or self._chunk is not None:
            return False
        pause = (_TURN_SECONDS if copying else 0) if self.many else READ_SECONDS
        return self._read_at is None or now >= self._read_at + pause

    @property
    def next_keys(self) -> tuple[Texts, ...]:
        """The keys to be read next, those that wait longest."""
        return tuple(islice(self._keys, _MANY))

    def note(self, key: Texts) -> None:
        """Note that the last record of a key leaves out a value."""
        if key not in self._keys:
            self._keys[key] = None
            self._bytes += _size(key)

    def read(self, keys: Iterable[Texts], chunk: RememberedChunk, now: float) -> None:
        """Note that the rows of `keys` are published as a chunk shows them, or gone; `now` as for `due`."""
        for key in keys:
            del self._keys[key]
            self._bytes -= _size(key)
        self._chunk = chunk
        self._read_at = now

    def forget_keys(self) -> None:
        """Note that no row is to be read any more: the table is."""
        self._keys.clear()
        self._bytes = 0

    def publishes(self, key: bytes, xid: int, commit_lsn: Lsn) -> bool:
        """Whether the event of transaction `xid` on the row `key` goes to the topic, as far as these rows tell."""
        return self._chunk is None or self._chunk.publishes(key, xid, commit_lsn)

    def passed(self, lsn: Lsn) -> bool:
        """Note that the stream stands at `lsn`; returns whether something changed by that."""
        if self._chunk is None or self._chunk.lsn > lsn:
            return False
        self._chunk = None
        return True


def _size(key: Texts) -> int:
    return sum(map(len, key))
