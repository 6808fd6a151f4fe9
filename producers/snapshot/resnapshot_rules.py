"""Copies a table whose events continue to be published: pure rules, no I/O.

Used where the ranges of `producers.snapshot.chunk_rules` do not work: for a table whose topic already has rows (a
re-snapshot), and for one whose keys this process cannot compare. No event is dropped for its place in the key order. A
chunk's rows are published just after the stream's current position, and their keys are remembered until the stream has
passed the LSN read after the chunk's snapshot. Meanwhile an event

- for a remembered key is dropped if and only if the chunk's snapshot saw its transaction: the row has its effect;
- for any other key is published, so that a delete which the chunk cannot show still arrives.

The barrier (`producers.snapshot.chunk_rules.Unseen`) applies here too. Only one chunk is remembered at a time, which
bounds memory; its keys are recorded with it, so that a crash loses none. After a truncate the topic is complete, and
nothing is left to copy.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from producers.snapshot.chunk_rules import Key
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn
from schemas.xid_snapshot import Moment

_LENGTH: Final = 4
"""Bytes for the length of a recorded key: a text that compresses well may have megabytes."""

_MOST_ASKED: Final = 100
_MOST_ASKED_BYTES: Final = 256 * 1024
"""The most pending ranges, or bytes of their bounds, that are recorded; beyond that the whole table is read."""

Texts = tuple[str, ...]
"""A key as the texts of its columns; the database compares it."""


@dataclass(frozen=True)
class KeyRange:
    """A range from `first` to `last`, both inclusive; None is the end of the key space.

    With `partition`, only rows in the partition with this oid.
    """

    first: Texts | None = None
    last: Texts | None = None
    partition: int | None = None


@dataclass(frozen=True)
class RememberedChunk:
    """The message keys of a chunk's rows, and when they were read."""

    keys: frozenset[bytes]
    moment: Moment

    def publishes(self, key: bytes, xid: int, commit_lsn: Lsn) -> bool:
        """Whether the event of transaction `xid` for the row `key` is published."""
        return key not in self.keys or not self.moment.shows(xid, commit_lsn)


@dataclass(frozen=True)
class Reread:
    """The progress of a range: copied up to `after`, completely once `read`."""

    range: KeyRange = KeyRange()
    after: Texts | None = None
    read: bool = False
    chunk: RememberedChunk | None = None

    @property
    def ready(self) -> bool:
        """Whether the next chunk may be read."""
        return not self.read and self.chunk is None

    @property
    def complete(self) -> bool:
        """Whether all is copied and all events are published."""
        return self.read and self.chunk is None

    def copied(self, upto: Texts | None, chunk: RememberedChunk) -> Reread:
        """Note a published chunk; it ends at `upto`, or with the range (None)."""
        return replace(self, after=upto, read=upto is None, chunk=chunk)

    def passed(self, lsn: Lsn) -> Reread:
        """Note that the stream is at `lsn`."""
        return replace(self, chunk=None) if self.chunk is not None and self.chunk.moment.lsn <= lsn else self

    def truncated(self) -> Reread:
        """Note that the stream truncated the table."""
        return replace(self, read=True, chunk=None)


def united(ranges: Iterable[KeyRange], comparable: Callable[[Texts], Key] | None) -> tuple[KeyRange, ...]:
    """Return few ranges that cover all keys of these, perhaps more.

    Adjacent ranges merge if keys are `comparable`; too many become the whole table.
    """
    whole = KeyRange()
    kept = list(dict.fromkeys(ranges))
    if comparable is not None:
        of_keys = [each for each in kept if each.partition is None]
        kept = [*_joined(of_keys, comparable), *(each for each in kept if each.partition is not None)]
    size = sum(len(text) for each in kept for end in (each.first, each.last) for text in end or ())
    if whole in kept or len(kept) > _MOST_ASKED or size > _MOST_ASKED_BYTES:
        return (whole,)
    return tuple(kept)


def _joined(ranges: Sequence[KeyRange], comparable: Callable[[Texts], Key]) -> list[KeyRange]:
    joined: list[KeyRange] = []
    for each in sorted(ranges, key=lambda range_: () if range_.first is None else (0, *comparable(range_.first))):
        before = joined[-1] if joined else None
        if before is None or not _touch(before, each, comparable):
            joined.append(each)
        elif before.last is not None and (each.last is None or comparable(each.last) > comparable(before.last)):
            joined[-1] = replace(before, last=each.last)
    return joined


def _touch(before: KeyRange, after: KeyRange, comparable: Callable[[Texts], Key]) -> bool:
    """Whether no key is between two ranges; `before` does not start later than `after`."""
    if before.last is None or after.first is None:
        return True
    last, first = comparable(before.last), comparable(after.first)
    if first <= last:
        return True
    return len(last) == 1 and isinstance(last[0], int) and isinstance(first[0], int) and first[0] == last[0] + 1


def pack_keys(keys: Iterable[bytes]) -> str:
    """Return keys as text for the record, each prefixed by its length."""
    return base64.b64encode(b"".join(len(key).to_bytes(_LENGTH) + key for key in sorted(keys))).decode()


def unpack_keys(text: str) -> frozenset[bytes]:
    """Return the keys packed by `pack_keys`."""
    raw = base64.b64decode(text)
    keys: list[bytes] = []
    start = 0
    while start < len(raw):
        end = start + _LENGTH + int.from_bytes(raw[start : start + _LENGTH])
        keys.append(raw[start + _LENGTH : end])
        start = end
    return frozenset(keys)
