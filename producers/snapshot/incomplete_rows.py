"""Tracks rows whose last record omits a value, and when they are read by key: pure rules, no I/O.

An update that does not change a large value is streamed without it. The value is then in an earlier record of the key,
which compaction removes; after a change of the key no record of the new key has it. The keys of such records are
recorded in the same Kafka transaction. Their rows are read soon after and published just after the stream's current
position. The keys that were read are remembered until the stream has passed the LSN read after the snapshot, and events
are compared with them as with a chunk's (`producers.snapshot.resnapshot_rules`), independently of other copies of the
table.

A key is noted only if its record is published, so that a later delete is published too. A read waits until every
transaction that the stream has passed since the first key was noted is visible
(`producers.snapshot.chunk_rules.Unseen`). Earlier transactions need no waiting: one that wrote such a row, or had its
key before, was visible when the next could write it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from infra.state.positions import IncompleteState
from producers.snapshot.resnapshot_rules import RememberedChunk, Texts, pack_keys, unpack_keys
from schemas.positions import Lsn
from schemas.xid_snapshot import Moment

READ_SECONDS: Final = 5.0
"""The least time between two reads of a table's rows, unless many keys are pending."""

_MANY: Final = 1_000
_MANY_BYTES: Final = 64 * 1024
"""This many keys, or bytes of keys, are read in one batch without delay; the stream waits for it."""

_TURN_SECONDS: Final = 0.2
"""How long a batch waits so that the table's snapshot can read a chunk."""

_MOST: Final = 20_000
_MOST_BYTES: Final = 256 * 1024
"""The most pending keys that are recorded; beyond that the table is re-snapshotted."""


class IncompleteRows:
    """The keys of one table whose last record omits a value; `state` reflects every change."""

    def __init__(self, state: IncompleteState) -> None:
        self._keys = dict.fromkeys(state.keys)
        self._bytes = sum(map(_size, self._keys))
        moment = Moment.recorded(state.snapshot, state.lsn)
        self._chunk = None if moment is None else RememberedChunk(unpack_keys(state.read), moment)
        self._read_at: float | None = None

    @property
    def state(self) -> IncompleteState:
        """The state to record."""
        chunk = self._chunk
        return IncompleteState(
            keys=tuple(self._keys),
            snapshot=str(chunk.moment.snapshot) if chunk else None,
            lsn=chunk.moment.lsn if chunk else None,
            read=pack_keys(chunk.keys) if chunk else "",
        )

    @property
    def noted(self) -> bool:
        """Whether any row is to be read."""
        return bool(self._keys)

    @property
    def many(self) -> bool:
        """Whether so many keys are pending that they are read before the stream continues."""
        return len(self._keys) >= _MANY or self._bytes >= _MANY_BYTES

    @property
    def too_many(self) -> bool:
        """Whether more keys are pending than can be recorded."""
        return len(self._keys) > _MOST or self._bytes > _MOST_BYTES

    @property
    def remembered(self) -> RememberedChunk | None:
        """The rows read last, until the stream has passed them."""
        return self._chunk

    def due(self, now: float, *, copying: bool) -> bool:
        """Whether rows are to be read now; `now` is in seconds of a monotonic clock.

        With `copying`, a chunk of the table is due too, and gets its turn.
        """
        if not self._keys or self._chunk is not None:
            return False
        pause = (_TURN_SECONDS if copying else 0) if self.many else READ_SECONDS
        return self._read_at is None or now >= self._read_at + pause

    @property
    def next_keys(self) -> tuple[Texts, ...]:
        """The keys to read next: those pending longest."""
        return tuple(islice(self._keys, _MANY))

    def note(self, key: Texts) -> None:
        """Note that the last record of a key omits a value."""
        if key not in self._keys:
            self._keys[key] = None
            self._bytes += _size(key)

    def read(self, keys: Iterable[Texts], chunk: RememberedChunk, now: float) -> None:
        """Note that the rows of `keys` are published as read in a chunk, or gone; `now` as for `due`."""
        for key in keys:
            del self._keys[key]
            self._bytes -= _size(key)
        self._chunk = chunk
        self._read_at = now

    def forget_keys(self) -> None:
        """Forget the pending keys: the whole table is read instead."""
        self._keys.clear()
        self._bytes = 0

    def publishes(self, key: bytes, xid: int, commit_lsn: Lsn) -> bool:
        """Whether these rows allow publishing the event of transaction `xid` for the row `key`."""
        return self._chunk is None or self._chunk.publishes(key, xid, commit_lsn)

    def passed(self, lsn: Lsn) -> bool:
        """Note that the stream is at `lsn`; return whether that changed the state."""
        if self._chunk is None or self._chunk.moment.lsn > lsn:
            return False
        self._chunk = None
        return True


def _size(key: Texts) -> int:
    return sum(map(len, key))
