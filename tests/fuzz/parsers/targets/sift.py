"""Skips stretches of consumed records, with the prefilter in C and in Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from consumers.planning.prefilter import sift, sift_in_python
from schemas.positions import Offset
from tests.fuzz.parsers.target import Target, agree, pack, unpack


@dataclass(frozen=True)
class _Record:
    """The parts of a Kafka message that the prefilter uses."""

    number: int
    at: int | None
    content: bytes | None
    failed: str | None

    def error(self) -> str | None:
        return self.failed

    def topic(self) -> str:
        return "t"

    def partition(self) -> int:
        return self.number

    def offset(self) -> int | None:
        return self.at

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes | None:
        return self.content


def _records(data: bytes) -> Iterator[_Record]:
    for number, part in enumerate(unpack(data)):
        flags = part[0] if part else 0
        offset = None if flags & 8 else number * (1 + (flags & 1)) + (flags >> 4)
        yield _Record(flags >> 2 & 1, offset, None if flags & 2 else part[1:], "broken" if flags == 255 else None)


def _run(data: bytes) -> None:
    if len(data) < 2:
        return
    records = list(_records(data[2:]))
    known = {b"\0\0\0\0\x07": 1} if data[0] & 1 else {}
    needles = (b"open", b"x")[: data[0] >> 1 & 3]
    start = min(data[0] >> 4, len(records))
    arguments = (
        records,
        start,
        "t" if data[0] & 8 else None,
        0,
        Offset(data[1] & 15),
        needles,
        known,
        1 + (data[1] >> 4),
    )
    agree("the two codecs", tuple(sift_in_python(*arguments)), tuple(sift(*arguments)))


def _seeds() -> Iterator[bytes]:
    values = [b"\0\0\0\0\0\x07open", b"\0\0\0\0\0\x07shut", b"\x02", b"\0\0\0\0\0\x08open", b"\x10\0\0\0\0\x07xy"]
    for flags in range(16):
        yield bytes((flags, flags * 16 + 3)) + pack(values)


TARGET = Target("stretches of consumed records", _run, _seeds, dictionary=(b"\0\0\0\0\x07", b"open"))
