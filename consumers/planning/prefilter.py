"""A stretch of consumed records: which of them a migration has to look at, and how many need nothing.

In C where there is a compiled codec (schemas/_codec_records.h), since most records are only stepped over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from confluent_kafka import KafkaError

from schemas import codec
from schemas.positions import Offset
from schemas.wire import HEADER_BYTES


class Record(Protocol):
    """What is used of confluent_kafka.Message."""

    def error(self) -> KafkaError | None: ...
    def topic(self) -> str | None: ...
    def partition(self) -> int | None: ...
    def offset(self) -> int | None: ...
    def key(self) -> Any: ...
    def value(self) -> Any: ...


class Stretch(NamedTuple):
    """What is in a list of records up to `stop`: the partition needs `next_offset` next."""

    stop: int
    next_offset: Offset
    tombstones: int
    unmentioned: int
    candidates: list[Any]
    """The records to be decided, in order; their values are of one schema."""


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
    """Step over `records` from `start` for as long as they are events of this partition (and `topic`, unless None).

    Left out are those before `next_offset`. It stops with candidate number `room`, and before a value of another schema
    than the one before it has. A value without any of `needles` is counted as unmentioned; without needles every value
    is a candidate. With needles it stops before a schema whose header is not `known` as well, so that the caller may
    learn it; as the first record such a value is a candidate: nobody can read it.
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
    _mentions if codec.compiled is None else codec.compiled.mentions
)
"""Whether one of the needles stands in the value."""


def _sift_in_c(*arguments: Any) -> Stretch:
    return Stretch(*codec.compiled.sift(*arguments))


sift: Final[Sift] = sift_in_python if codec.compiled is None else _sift_in_c
"""`sift_in_python`, in C where that could be compiled."""
