"""Parses the frames of streaming replication, and the server's messages of COPY."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from producers.stream.frames import XLogData, parse
from schemas.codec import implementation
from schemas.errors import Malformed
from tests.fuzz.parsers.target import Target, Violation, agree, outcome


def _run(data: bytes) -> None:
    kind, frame = outcome(Malformed, parse, data)
    if kind == "value" and isinstance(frame, XLogData) and frame.data != data[25:]:
        raise Violation("a frame with data that its message does not have")
    if implementation.compiled is not None:
        agree("the lines of COPY", implementation.compiled.copy_data(bytearray(data)), _copy_data(data))


def _copy_data(data: bytes) -> tuple[bytes, int, int]:
    """Do what the compiled `copy_data` does."""
    lines, position = [], 0
    while data[position : position + 1] == b"d" and len(data) - position >= 5:
        length = int.from_bytes(data[position + 1 : position + 5], "big")
        if length < 4 or position + 1 + length > len(data):
            break
        lines.append(data[position + 5 : position + 1 + length])
        position += 1 + length
    return b"".join(lines), len(lines), position


def _seeds() -> Iterator[bytes]:
    yield b"w" + struct.pack("!QQq", 5, 5, 10**15) + b"B"
    yield b"k" + struct.pack("!QqB", 9, 10**15, 1)
    yield b"".join(b"d" + (len(line) + 4).to_bytes(4, "big") + line for line in (b"1\ta\n", b"", b"2\t\\N\n"))
    yield b"C\0\0\0\x0bCOPY 2\0"


TARGET = Target(
    "replication frames and messages of COPY", _run, _seeds, dictionary=(b"d\0\0\0\x04", b"\xff\xff\xff\xff")
)
