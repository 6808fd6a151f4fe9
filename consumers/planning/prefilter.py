"""The prefilter: selects the records that a migration has to decide, and counts those it skips.

In C if the codec is compiled (schemas/codec/extension/prefilter.c), since most records are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from confluent_kafka import KafkaError

from schemas.codec import implementation
from schemas.positions import Offset
from schemas.wire import HEADER_BYTES


class Record(Protocol):
    """The part of confluent_kafka.Message that is used."""

    def error(self) -> KafkaError | None: ...
    def topic(self) -> str | None: ...
    def partition(self) -> int | None: ...
    def offset(self) -> int | None: ...
    def key(self) -> Any: ...
    def value(self) -> Any: ...


class Stretch(NamedTuple):
    """The result for a list of records up to index `stop`; `next_offset` is the partition's next offset."""

    stop: int
    next_offset: Offset
    tombstones: int
    unmentioned: int
    candidates: list[Any]
    """The records to decide, in order; their values have one schema."""


Sift = Callable[
    [list[Any], int, str | None, int | None, Offset, tuple[bytes, ...], Mapping[bytes, object], int], Stretch
]


def sift_in_python(
    records: list[Any],
    start: int,
    topic: str | None,
    partition: int | None,
    next_offset: Offset,
    needles: tuple[bytes, ...],
    known: Mapping[bytes, object],
    room: int,
) -> Stretch:
    """Scan `records` from `start` while they are events of this partition (and of `topic`, unless None).

    Records before `next_offset` are ignored. It stops after candidate number `room`, and before a value with another
    schema. A value that contains none of `needles` is counted as unmentioned; without needles every value is a
    candidate. With needles it also stops before a schema whose header is not `known`, so that the caller can load it;
    if the first record has such a schema, it is a candidate, since it is unreadable.
    """
    tombstones = unmentioned = 0
    candidates: list[Any] = []
    header: bytes | None = None
    for index in range(start, len(records)):
        record = records[index]
        ours = record.partition() == partition and (topic is None or record.topic() == topic)
        if len(candidates) >= room or not ours or record.error() is not None:
            return Stretch(index, next_offset, tombstones, unmentioned, candidates)
        offset = record.offset()
        if offset is None or offset < next_offset:
            continue
        value = record.value()
        if value is None:
            tombstones += 1
        else:
            header = value[:HEADER_BYTES] if header is None else header
            readable = header in known
            if value[:HEADER_BYTES] != header or (needles and not readable and index > start):
                return Stretch(index, next_offset, tombstones, unmentioned, candidates)
            if needles and readable and not mentions(value, needles):
                unmentioned += 1
            else:
                candidates.append(record)
        next_offset = Offset(offset + 1)
    return Stretch(max(start, len(records)), next_offset, tombstones, unmentioned, candidates)


def _mentions(value: bytes, needles: tuple[bytes, ...]) -> bool:
    return any(needle in value for needle in needles)


mentions: Final[Callable[[bytes, tuple[bytes, ...]], bool]] = (
    _mentions if implementation.compiled is None else implementation.compiled.mentions
)
"""Whether the value contains one of the needles."""


def _sift_in_c(*arguments: Any) -> Stretch:
    return Stretch(*implementation.compiled.sift(*arguments))


sift: Final[Sift] = sift_in_python if implementation.compiled is None else _sift_in_c
"""`sift_in_python`, or its C version if compiled."""
