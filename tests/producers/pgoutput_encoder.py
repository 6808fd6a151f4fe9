"""A minimal encoder of pgoutput: messages to the bytes that a server would send."""

from __future__ import annotations

import struct

from producers.stream import messages as m
from schemas.events import Relation, Unchanged

PG_EPOCH_MS = 946_684_800_000


def encode(message: m.Message, *, full_before: bool = False) -> bytes:  # noqa: PLR0911  # one message, one return
    """Return `message` as bytes; an `xid` on a change makes it one of a stream block.

    `full_before` writes an old tuple as `O` (replica identity full) rather than `K`.
    """
    match message:
        case m.Begin():
            return b"B" + struct.pack("!QqI", message.final_lsn, us(message.commit_ms), message.xid)
        case m.Commit():
            return b"C" + struct.pack("!BQQq", 0, message.commit_lsn, message.end_lsn, us(message.commit_ms))
        case m.LogicalMessage():
            head = struct.pack("!BQ", message.transactional, message.lsn)
            tail = struct.pack("!I", len(message.content)) + message.content
            return b"M" + xid(message.xid) + head + text(message.prefix) + tail
        case m.Origin():
            return b"O" + struct.pack("!Q", message.lsn) + text(message.name)
        case m.RelationMessage():
            return b"R" + xid(message.xid) + relation(message.relation)
        case m.TypeMessage():
            names = text(message.schema) + text(message.name)
            return b"Y" + xid(message.xid) + struct.pack("!I", message.oid) + names
        case m.Insert():
            return b"I" + xid(message.xid) + oid(message.relation) + b"N" + row(message.after)
        case m.Update():
            old = b"" if message.before is None else before(message.before, full_before)
            return b"U" + xid(message.xid) + oid(message.relation) + old + b"N" + row(message.after)
        case m.Delete():
            return b"D" + xid(message.xid) + oid(message.relation) + before(message.before, full_before)
        case m.Truncate():
            options = message.cascade | message.restart_identity << 1
            oids = b"".join(oid(each) for each in message.relations)
            return b"T" + xid(message.xid) + struct.pack("!IB", len(message.relations), options) + oids
        case _:
            return control(message)


def control(message: m.Message) -> bytes:  # noqa: PLR0911  # as above
    """Return the bytes of the messages of streams and of two-phase commit."""
    match message:
        case m.StreamStart():
            return b"S" + struct.pack("!IB", message.xid, message.first)
        case m.StreamStop():
            return b"E"
        case m.StreamCommit(number, commit_lsn, end_lsn, commit_ms):
            return b"c" + struct.pack("!IBQQq", number, 0, commit_lsn, end_lsn, us(commit_ms))
        case m.StreamAbort(number, subxid, None, _):
            return b"A" + struct.pack("!II", number, subxid)
        case m.StreamAbort(number, subxid, lsn, abort_ms):
            assert abort_ms is not None
            return b"A" + struct.pack("!IIQq", number, subxid, lsn, us(abort_ms))
        case m.BeginPrepare(lsn, end_lsn, clock, number, gid):
            return b"b" + struct.pack("!QQqI", lsn, end_lsn, us(clock), number) + text(gid)
        case m.RollbackPrepared(lsn, end_lsn, prepare_ms, clock, number, gid):
            times = us(prepare_ms), us(clock)
            return b"r" + struct.pack("!BQQqqI", 0, lsn, end_lsn, *times, number) + text(gid)
        case m.Prepare(lsn, end_lsn, clock, number, gid):
            kind = b"P"
        case m.StreamPrepare(lsn, end_lsn, clock, number, gid):
            kind = b"p"
        case m.CommitPrepared(lsn, end_lsn, clock, number, gid):
            kind = b"K"
        case _:
            raise AssertionError(f"no encoding for {type(message).__name__}")
    return kind + struct.pack("!BQQqI", 0, lsn, end_lsn, us(clock), number) + text(gid)


def us(ms: int) -> int:
    return (ms - PG_EPOCH_MS) * 1000


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def xid(number: int | None) -> bytes:
    return b"" if number is None else struct.pack("!I", number)


def oid(described: Relation) -> bytes:
    return struct.pack("!I", described.oid)


def relation(described: Relation) -> bytes:
    schema = "" if described.schema == "pg_catalog" else described.schema
    head = struct.pack("!I", described.oid) + text(schema) + text(described.table)
    head += described.replica_identity.encode() + struct.pack("!H", len(described.columns))
    return head + b"".join(
        bytes((each.name in described.identity_columns,))
        + text(each.name)
        + struct.pack("!Ii", each.type_oid, each.type_modifier)
        for each in described.columns
    )


def before(values: m.Values, full: bool) -> bytes:
    """Return an old tuple; a key tuple has null where the value is left out."""
    if full:
        return b"O" + row(values)
    return b"K" + row([None if isinstance(each, Unchanged) else each for each in values])


def row(values: m.Values) -> bytes:
    return struct.pack("!H", len(values)) + b"".join(map(value, values))


def value(each: bytes | Unchanged | None) -> bytes:
    if each is None:
        return b"n"
    if isinstance(each, Unchanged):
        return b"u"
    kind = b"b" if isinstance(each, m.Binary) else b"t"
    return kind + struct.pack("!I", len(each)) + each
