"""Frames of streaming replication, the contents of CopyData in both directions; no I/O.

LSNs are as on the wire; times are milliseconds since 1970.
Source: PostgreSQL 18, "Streaming Replication Protocol".
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

from producers.stream.pgoutput_fields import PG_EPOCH_MS
from schemas.errors import Malformed
from schemas.positions import Lsn


class XLogData(NamedTuple):
    """One message of the output plugin.

    `start` is the LSN of the change in `data` (0 if it has none), `end` is the same for logical replication. Neither
    may be confirmed; a commit's `end_lsn` may.
    """

    start: Lsn
    end: Lsn
    sent_ms: int
    data: bytes


class Keepalive(NamedTuple):
    """The server decoded WAL up to `end` and has nothing more to send.

    Once everything received is safe, `end` should be confirmed: without changes a slot advances only this way, and a
    server that shuts down waits for it.
    """

    end: Lsn
    sent_ms: int
    reply_requested: bool


Frame: TypeAlias = XLogData | Keepalive

Received: TypeAlias = bytes | Keepalive
"""What a reader gets of a frame: the data of an XLogData frame, or a keepalive."""

_XLOG_DATA = struct.Struct("!BQQq")
_KEEPALIVE = struct.Struct("!BQqB")
_STATUS = struct.Struct("!cQQQqB")
_xlog_data = _XLOG_DATA.unpack_from
_new = tuple.__new__


def parse(frame: bytes | memoryview) -> Frame:
    """Return the frame in one CopyData payload; raises Malformed for anything else."""
    size = len(frame)
    kind = frame[0] if size else 0
    if kind == 0x77:  # w
        if size <= _XLOG_DATA.size:
            raise Malformed(f"replication XLogData frame of {size} bytes is malformed: it carries no data")
        _, start, end, clock = _xlog_data(frame)
        return _new(XLogData, (start, end, clock // 1000 + PG_EPOCH_MS, bytes(frame[25:])))
    if kind == 0x6B:  # k
        if size != _KEEPALIVE.size:
            raise Malformed(f"replication keepalive frame of {size} bytes is malformed: expected {_KEEPALIVE.size}")
        _, lsn, clock, reply = _KEEPALIVE.unpack(frame)
        return Keepalive(lsn, clock // 1000 + PG_EPOCH_MS, reply != 0)
    raise Malformed(f"replication frame of {size} bytes is malformed at byte 0: type {kind} is unknown")


def status_update(*, written: Lsn, flushed: Lsn, applied: Lsn, clock_ms: int, reply_requested: bool = False) -> bytes:
    """Return a standby status update; the server never sends changes before `flushed` again."""
    clock = (clock_ms - PG_EPOCH_MS) * 1000
    return _STATUS.pack(b"r", written, flushed, applied, clock, reply_requested)
