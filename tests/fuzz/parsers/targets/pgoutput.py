"""Decodes a session of pgoutput messages in C and in Python; a refused message must leave no state behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from producers.stream import messages as m
from producers.stream import row_changes
from producers.stream.pgoutput import Decoder
from producers.stream.pgoutput_fields import NAMES, columns, columns_in_python
from schemas.errors import Malformed
from schemas.events import UNCHANGED, Column, Relation
from schemas.positions import Lsn
from tests.fuzz.parsers.target import Target, agree, outcome, pack, unpack
from tests.producers.pgoutput_encoder import encode

MS: Final = 1_700_000_000_123
TABLE: Final = Relation(7, "public", "repo", "d", (Column("id", 20), Column("name", 25), Column("note", 25)), ("id",))
WHOLE: Final = Relation(8, "pg_catalog", "ü", "f", (Column("a", 23, 5), Column("b", 17)), ("a", "b"))


def _run(data: bytes) -> None:
    compiled, python, unharmed = Decoder(), Decoder(), Decoder()
    for message in unpack(data):
        found = outcome(Malformed, compiled.decode, message)
        setattr(row_changes, "columns", columns_in_python)  # noqa: B010  # its own name for it
        try:
            agree("the two codecs", found, outcome(Malformed, python.decode, message))
        finally:
            setattr(row_changes, "columns", columns)  # noqa: B010
        if found[0] == "value":
            agree("with and without refused messages", found, outcome(Malformed, unharmed.decode, message))
        agree("stream blocks", compiled.stream_xid, python.stream_xid, unharmed.stream_xid)


def _session(xid: int | None) -> list[bytes]:
    """Return messages with every kind of change, in a stream block if `xid` is given."""
    body: list[m.Message] = [
        m.Origin(Lsn(9), "elsewhere"),
        m.TypeMessage(99, "public", "mood", xid),
        m.RelationMessage(TABLE, xid),
        m.RelationMessage(WHOLE, xid),
        m.Insert(TABLE, [b"1", b"a" * 70, None], xid),
        m.Update(TABLE, None, [b"1", b"b", UNCHANGED], xid),
        m.Update(TABLE, [b"1", UNCHANGED, UNCHANGED], [b"2", b"b", UNCHANGED], xid),
        m.Delete(TABLE, [b"2", UNCHANGED, UNCHANGED], xid),
        m.Insert(WHOLE, [b"5", m.Binary(b"\0\1")], xid),
        m.Truncate((TABLE, WHOLE), True, False, xid),
        m.LogicalMessage(True, Lsn(77), "headrace", b"1700000000000", xid),
    ]
    whole: list[m.Message] = [m.Update(WHOLE, [b"5", None], [b"6", None], xid), m.Delete(WHOLE, [b"6", b""], xid)]
    messages = [encode(each) for each in body] + [encode(each, full_before=True) for each in whole]
    if xid is None:
        return [encode(m.Begin(Lsn(80), MS, 5)), *messages, encode(m.Commit(Lsn(80), Lsn(90), MS))]
    tail: list[m.Message] = [
        m.StreamStop(),
        m.StreamAbort(xid, xid + 1, None, None),
        m.StreamAbort(xid, xid + 2, Lsn(85), MS),
        m.StreamCommit(xid, Lsn(80), Lsn(90), MS),
        m.BeginPrepare(Lsn(1), Lsn(2), MS, 6, "gid"),
        m.Prepare(Lsn(1), Lsn(2), MS, 6, "gid"),
        m.CommitPrepared(Lsn(1), Lsn(2), MS, 6, "gid"),
        m.RollbackPrepared(Lsn(1), Lsn(2), MS, MS, 6, "gid"),
        m.StreamPrepare(Lsn(1), Lsn(2), MS, 6, "gid"),
    ]
    return [encode(m.StreamStart(xid, True)), *messages, *map(encode, tail)]


SESSIONS: Final = (_session(None), _session(600))
"""Well-formed messages of every kind, as sent at a transaction's commit, and before it."""


def _seeds() -> Iterator[bytes]:
    for session in SESSIONS:
        yield pack(session)
        relations = [message for message in session if message[:1] in (b"R", b"S")]
        for message in session:
            yield pack([*relations, message])


TARGET = Target(
    "pgoutput's messages",
    _run,
    _seeds,
    dictionary=(*(bytes((each,)) for each in NAMES), b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x07"),
)
