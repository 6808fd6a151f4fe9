"""Reads the fields of pgoutput's messages, and the messages that need no decoder state.

Positions are byte offsets from the message's type byte. Every reader raises Malformed, or struct.error if a fixed part
is truncated, which `producers.stream.pgoutput.Decoder` translates into Malformed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from producers.stream.messages import (
    Begin,
    BeginPrepare,
    Binary,
    Commit,
    CommitPrepared,
    Origin,
    Prepare,
    RollbackPrepared,
    Values,
)
from schemas.codec import implementation
from schemas.errors import Malformed
from schemas.events import UNCHANGED, Unchanged
from schemas.positions import Lsn

PG_EPOCH_MS: Final = 946_684_800_000
"""2000-01-01 in milliseconds since 1970: the epoch of PostgreSQL's timestamps."""

NAMES: Final = {
    ord("B"): "Begin",
    ord("C"): "Commit",
    ord("M"): "Message",
    ord("O"): "Origin",
    ord("R"): "Relation",
    ord("Y"): "Type",
    ord("I"): "Insert",
    ord("U"): "Update",
    ord("D"): "Delete",
    ord("T"): "Truncate",
    ord("S"): "Stream Start",
    ord("E"): "Stream Stop",
    ord("c"): "Stream Commit",
    ord("A"): "Stream Abort",
    ord("b"): "Begin Prepare",
    ord("P"): "Prepare",
    ord("p"): "Stream Prepare",
    ord("K"): "Commit Prepared",
    ord("r"): "Rollback Prepared",
}

_BEGIN = struct.Struct("!QqI")
_COMMIT = struct.Struct("!BQQq")
_INT64 = struct.Struct("!Q")
_BEGIN_PREPARE = struct.Struct("!QQqI")
_PREPARE = struct.Struct("!BQQqI")
_ROLLBACK_PREPARED = struct.Struct("!BQQqqI")
_length = struct.Struct("!I").unpack_from


def malformed(data: bytes, offset: int, why: str) -> Malformed:
    """Return the error for `data`, invalid at byte `offset`; it contains no values."""
    name = NAMES.get(data[0], "") if data else ""
    return Malformed(f"pgoutput {name or 'unknown'} message is malformed at byte {offset} of {len(data)}: {why}")


def trailing(data: bytes, pos: int) -> Malformed:
    """Return the error for a message that should have ended at `pos`."""
    return malformed(data, pos, f"{len(data) - pos} bytes are left over")


def ms(clock: int) -> int:
    """Return PostgreSQL's clock (microseconds since 2000) as milliseconds since 1970, rounded down."""
    return clock // 1000 + PG_EPOCH_MS


def columns(data: bytes, pos: int, count: int) -> tuple[Values, int]:
    """Return the `count` values of the tuple at `pos`, and its end."""
    return (_tuple_row and _tuple_row(data, pos, count)) or columns_in_python(data, pos, count)


_tuple_row: Callable[[bytes, int, int], tuple[Values, int] | None] | None = (
    implementation.compiled and implementation.compiled.tuple_row
)
"""Locates the values without creating them: the compiled codec reads them from the message."""


def columns_in_python(data: bytes, pos: int, count: int) -> tuple[list[bytes | Unchanged | None], int]:
    """Implement `columns` for every message: return a list, or raise the error for an invalid tuple.

    A wrong length allocates nothing: slices end at the message's end, and the overrun is detected afterwards.
    """
    values: list[bytes | Unchanged | None] = []
    append = values.append
    length = _length
    start = pos
    try:
        for _ in range(count):
            kind = data[pos]
            if kind == 0x74:  # t
                start = pos + 5
                pos = start + length(data, pos + 1)[0]
                append(data[start:pos])
            elif kind == 0x6E:  # n
                append(None)
                pos += 1
            elif kind == 0x75:  # u
                append(UNCHANGED)
                pos += 1
            elif kind == 0x62:  # b
                start = pos + 5
                pos = start + length(data, pos + 1)[0]
                append(Binary(data[start:pos]))
            else:
                raise malformed(data, pos, f"column {len(values)} has the unknown kind {bytes((kind,))!r}")
    except (IndexError, struct.error):
        if pos <= len(data):
            raise malformed(data, pos, f"it ends inside column {len(values)} of {count}") from None
    if pos > len(data):
        raise malformed(data, start - 4, f"column {len(values) - 1} is longer than what is left")
    return values, pos


def identity_only(values: Values, identity: tuple[int, ...]) -> Values:
    """Return a key tuple with UNCHANGED instead of the wire's nulls outside the identity."""
    kept: list[bytes | Unchanged | None] = [UNCHANGED] * len(values)
    for index in identity:
        kept[index] = values[index]
    return kept


def string(data: bytes, pos: int) -> tuple[str, int]:
    """Return the NUL-terminated string at `pos`, and the start of the next field.

    Bytes that are not UTF-8 are kept by surrogateescape (PEP 383): the encoding is the database's.
    """
    end = data.find(0, pos)
    if end < 0:
        raise malformed(data, min(pos, len(data)), "a string has no end")
    return data[pos:end].decode(errors="surrogateescape"), end + 1


def whole(data: bytes, form: struct.Struct) -> tuple[Any, ...]:
    """Unpack a message that consists of `form`."""
    if len(data) > 1 + form.size:
        raise trailing(data, 1 + form.size)
    return form.unpack_from(data, 1)


def with_gid(data: bytes, form: struct.Struct) -> tuple[Any, ...]:
    """Unpack a message that consists of `form` and a global transaction id."""
    head = form.unpack_from(data, 1)
    gid, pos = string(data, 1 + form.size)
    if pos != len(data):
        raise trailing(data, pos)
    return *head, gid


def no_flags(data: bytes, pos: int, flags: int) -> None:
    """Reject flags: the protocol defines none here yet."""
    if flags:
        raise malformed(data, pos, f"flags {flags} are unknown")


def begin(data: bytes) -> Begin:
    """Read a Begin."""
    final_lsn, clock, xid = whole(data, _BEGIN)
    return Begin(final_lsn, ms(clock), xid)


def commit(data: bytes) -> Commit:
    """Read a Commit."""
    flags, commit_lsn, end_lsn, clock = whole(data, _COMMIT)
    no_flags(data, 1, flags)
    return Commit(commit_lsn, end_lsn, ms(clock))


def origin(data: bytes) -> Origin:
    """Read an Origin."""
    lsn = _INT64.unpack_from(data, 1)[0]
    name, pos = string(data, 9)
    if pos != len(data):
        raise trailing(data, pos)
    return Origin(Lsn(lsn), name)


def begin_prepare(data: bytes) -> BeginPrepare:
    """Read a Begin Prepare."""
    prepare_lsn, end_lsn, clock, xid, gid = with_gid(data, _BEGIN_PREPARE)
    return BeginPrepare(prepare_lsn, end_lsn, ms(clock), xid, gid)


def prepare(data: bytes) -> Prepare:
    """Read a Prepare."""
    flags, prepare_lsn, end_lsn, clock, xid, gid = with_gid(data, _PREPARE)
    no_flags(data, 1, flags)
    return Prepare(prepare_lsn, end_lsn, ms(clock), xid, gid)


def commit_prepared(data: bytes) -> CommitPrepared:
    """Read a Commit Prepared."""
    flags, commit_lsn, end_lsn, clock, xid, gid = with_gid(data, _PREPARE)
    no_flags(data, 1, flags)
    return CommitPrepared(commit_lsn, end_lsn, ms(clock), xid, gid)


def rollback_prepared(data: bytes) -> RollbackPrepared:
    """Read a Rollback Prepared."""
    flags, prepare_end_lsn, rollback_end_lsn, prepared, rolled_back, xid, gid = with_gid(data, _ROLLBACK_PREPARED)
    no_flags(data, 1, flags)
    return RollbackPrepared(prepare_end_lsn, rollback_end_lsn, ms(prepared), ms(rolled_back), xid, gid)
