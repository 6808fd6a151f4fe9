"""pgoutput's parser against bytes built by hand, against its own inverse, and against garbage."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.stream import messages as m
from producers.stream.pgoutput import Decoder
from schemas.errors import Malformed
from schemas.events import UNCHANGED, Column, Relation
from schemas.positions import Lsn
from tests.fuzz.parsers.targets.pgoutput import MS, SESSIONS, TABLE, WHOLE
from tests.producers.pgoutput_encoder import encode

# 2023-11-14 22:13:20.123456 UTC on both clocks.
CLOCK_US = 753_315_200_123_456
COMMIT_LSN = Lsn(0x16_B374_D848)
END_LSN = Lsn(0x16_B374_D878)

TABLE_BYTES = (
    b"R\0\0\0\x07public\0repo\0d\0\x03"
    b"\x01id\0\0\0\0\x14\xff\xff\xff\xff"
    b"\0name\0\0\0\0\x19\xff\xff\xff\xff"
    b"\0note\0\0\0\0\x19\xff\xff\xff\xff"
)
XID = b"\0\0\x02\x58"  # 600


def decoder(*payloads: bytes) -> Decoder:
    """Return a decoder that has taken `payloads`."""
    made = Decoder()
    for payload in payloads:
        made.decode(payload)
    return made


def in_stream(*payloads: bytes) -> Decoder:
    """Return a decoder in a stream block of transaction 600."""
    return decoder(b"S" + XID + b"\x01", *payloads)


def describe(relation: Relation, xid: int | None = None) -> bytes:
    return encode(m.RelationMessage(relation, xid))


ALONE: list[tuple[bytes, m.Message]] = [
    (b"B" + struct.pack("!QqI", COMMIT_LSN, CLOCK_US, 742), m.Begin(COMMIT_LSN, MS, 742)),
    (b"C\0" + struct.pack("!QQq", COMMIT_LSN, END_LSN, CLOCK_US), m.Commit(COMMIT_LSN, END_LSN, MS)),
    (
        b"M\x01" + struct.pack("!Q", COMMIT_LSN) + b"headrace\0\0\0\0\x02hi",
        m.LogicalMessage(True, COMMIT_LSN, "headrace", b"hi", None),
    ),
    (b"M\0" + struct.pack("!Q", 1) + b"\0\0\0\0\0", m.LogicalMessage(False, Lsn(1), "", b"", None)),
    (b"O" + struct.pack("!Q", COMMIT_LSN) + b"node\0", m.Origin(COMMIT_LSN, "node")),
    # From a database whose encoding is not UTF-8.
    (b"O" + struct.pack("!Q", COMMIT_LSN) + b"n\xe9\0", m.Origin(COMMIT_LSN, "n\udce9")),
    (TABLE_BYTES, m.RelationMessage(TABLE, None)),
    (b"Y\0\0\0\x63public\0mood\0", m.TypeMessage(99, "public", "mood", None)),
    (b"Y\0\0\0\x63\0mood\0", m.TypeMessage(99, "pg_catalog", "mood", None)),
    (b"S" + XID + b"\0", m.StreamStart(600, False)),
    (
        b"c" + XID + b"\0" + struct.pack("!QQq", COMMIT_LSN, END_LSN, CLOCK_US),
        m.StreamCommit(600, COMMIT_LSN, END_LSN, MS),
    ),
    (b"A" + XID + XID, m.StreamAbort(600, 600, None, None)),
    (b"A" + XID + XID + struct.pack("!Qq", END_LSN, CLOCK_US), m.StreamAbort(600, 600, END_LSN, MS)),
    (
        b"b" + struct.pack("!QQqI", COMMIT_LSN, END_LSN, CLOCK_US, 600) + b"gid\0",
        m.BeginPrepare(COMMIT_LSN, END_LSN, MS, 600, "gid"),
    ),
    (
        b"P\0" + struct.pack("!QQqI", COMMIT_LSN, END_LSN, CLOCK_US, 600) + b"gid\0",
        m.Prepare(COMMIT_LSN, END_LSN, MS, 600, "gid"),
    ),
    (
        b"p\0" + struct.pack("!QQqI", COMMIT_LSN, END_LSN, CLOCK_US, 600) + b"gid\0",
        m.StreamPrepare(COMMIT_LSN, END_LSN, MS, 600, "gid"),
    ),
    (
        b"K\0" + struct.pack("!QQqI", COMMIT_LSN, END_LSN, CLOCK_US, 600) + b"gid\0",
        m.CommitPrepared(COMMIT_LSN, END_LSN, MS, 600, "gid"),
    ),
    (
        b"r\0" + struct.pack("!QQqqI", COMMIT_LSN, END_LSN, CLOCK_US, CLOCK_US + 1000, 600) + b"gid\0",
        m.RollbackPrepared(COMMIT_LSN, END_LSN, MS, MS + 1, 600, "gid"),
    ),
]
CHANGES: list[tuple[bytes, m.Message]] = [
    (b"IN\0\x03t\0\0\0\x011t\0\0\0\0n", m.Insert(TABLE, [b"1", b"", None], None)),
    (b"UN\0\x03t\0\0\0\x011nu", m.Update(TABLE, None, [b"1", None, UNCHANGED], None)),
    (
        b"UK\0\x03t\0\0\0\x011nnN\0\x03t\0\0\0\x012t\0\0\0\x01au",
        m.Update(TABLE, [b"1", UNCHANGED, UNCHANGED], [b"2", b"a", UNCHANGED], None),
    ),
    (
        b"UO\0\x03t\0\0\0\x011nt\0\0\0\x01xN\0\x03t\0\0\0\x012nn",
        m.Update(TABLE, [b"1", None, b"x"], [b"2", None, None], None),
    ),
    (b"DK\0\x03t\0\0\0\x011nn", m.Delete(TABLE, [b"1", UNCHANGED, UNCHANGED], None)),
    (b"DO\0\x03t\0\0\0\x011nt\0\0\0\x01x", m.Delete(TABLE, [b"1", None, b"x"], None)),
]


def change(body: bytes, xid: bytes = b"") -> bytes:
    """Return a change of TABLE, whose oid is 7, from its letter and its tuples."""
    return body[:1] + xid + b"\0\0\0\x07" + body[1:]


@pytest.mark.parametrize(("payload", "expected"), ALONE, ids=lambda each: type(each).__name__)
def test_independent_messages_are_decoded(payload: bytes, expected: m.Message) -> None:
    for form in (payload, memoryview(payload)):
        got = Decoder().decode(form)
        assert (type(got), got) == (type(expected), expected)


@pytest.mark.parametrize(("body", "expected"), CHANGES)
def test_changes_are_decoded(body: bytes, expected: m.Insert | m.Update | m.Delete) -> None:
    got = decoder(TABLE_BYTES).decode(change(body))
    assert (type(got), got) == (type(expected), expected)


@pytest.mark.parametrize(("body", "expected"), CHANGES)
def test_changes_in_a_stream_block_carry_their_subtransaction(
    body: bytes, expected: m.Insert | m.Update | m.Delete
) -> None:
    got = in_stream(describe(TABLE, 600)).decode(change(body, XID))
    assert (type(got), got) == (type(expected), expected._replace(xid=600))


def test_binary_values_are_distinguished_from_text() -> None:
    got = decoder(TABLE_BYTES).decode(change(b"IN\0\x03b\0\0\0\x02\0\x01t\0\0\0\x011n"))
    assert isinstance(got, m.Insert)
    assert [type(each) for each in got.after] == [m.Binary, bytes, type(None)]


def test_value_longer_than_255_bytes_is_decoded() -> None:
    long = bytes(range(256)) * 300
    got = decoder(TABLE_BYTES).decode(change(b"IN\0\x03nnt" + struct.pack("!I", len(long)) + long))
    assert isinstance(got, m.Insert)
    assert got.after == [None, None, long]


def test_replica_identity_full_flags_every_column() -> None:
    payload = b"R\0\0\0\x08\0\xc3\xbc\0f\0\x02\x01a\0\0\0\0\x17\0\0\0\x05\x01b\0\0\0\0\x11\xff\xff\xff\xff"
    assert Decoder().decode(payload) == m.RelationMessage(WHOLE, None)


def test_table_without_columns_is_decoded() -> None:
    bare = Relation(7, "public", "bare", "n", ())
    assert decoder(describe(bare)).decode(change(b"IN\0\0")) == m.Insert(bare, [], None)


def test_truncate_names_its_relations_and_options() -> None:
    made = decoder(describe(TABLE), describe(WHOLE))
    both = b"\0\0\0\x07\0\0\0\x08"
    assert made.decode(b"T\0\0\0\x02\x03" + both) == m.Truncate((TABLE, WHOLE), True, True, None)
    assert made.decode(b"T\0\0\0\0\x02") == m.Truncate((), False, True, None)


def test_streamed_relation_is_known_elsewhere_only_after_commit() -> None:
    insert = change(b"IN\0\x03nnn")
    made = in_stream(describe(TABLE, 600), b"E")
    with pytest.raises(Malformed, match="relation 7 was never described"):
        made.decode(insert)
    made.decode(encode(m.StreamCommit(600, COMMIT_LSN, END_LSN, MS)))
    assert made.decode(insert) == m.Insert(TABLE, [None, None, None], None)


def test_streamed_relation_is_forgotten_after_abort() -> None:
    wider = Relation(7, "public", "repo", "d", (*TABLE.columns, Column("more", 25)), ("id",))
    made = decoder(TABLE_BYTES, b"S" + XID + b"\x01", describe(wider, 600), b"E")
    made.decode(encode(m.StreamAbort(600, 601, None, None)))
    made.decode(b"S" + XID + b"\0")
    assert made.decode(change(b"IN\0\x04nnnn", XID)) == m.Insert(wider, [None] * 4, 600)
    made.decode(b"E")
    made.decode(encode(m.StreamAbort(600, 600, None, None)))
    assert made.decode(change(b"IN\0\x03nnn")) == m.Insert(TABLE, [None] * 3, None)


def test_interleaved_streams_stay_separate() -> None:
    made = in_stream(describe(TABLE, 600), b"E")
    assert made.stream_xid is None
    made.decode(encode(m.StreamStart(601, True)))
    assert made.stream_xid == 601
    with pytest.raises(Malformed, match="never described"):
        made.decode(change(b"IN\0\x03nnn", XID))


BROKEN: list[tuple[bytes, str]] = [
    (b"", r"unknown message is malformed at byte 0 of 0: it is empty"),
    (b"Z123", r"unknown message is malformed at byte 0 of 4: its type byte b'Z' is unknown"),
    (b"B123", r"Begin message is malformed at byte 4 of 4: it ends early"),
    (ALONE[0][0] + b"!", r"Begin message is malformed at byte 21 of 22: 1 bytes are left over"),
    (b"C\x01" + ALONE[1][0][2:], r"Commit .* byte 1 of 26: flags 1 are unknown"),
    (b"M\x02" + ALONE[2][0][2:], r"Message .* byte 1 .* flags 2"),
    (ALONE[2][0][:-1], r"Message .* byte 19 of 24: content of 2 bytes, where 1 follow"),
    (b"M\0" + bytes(8) + b"p\0\xff\xff\xff\xff", r"Message .* content of 4294967295 bytes, where 0 follow"),
    (b"O" + bytes(8) + b"node", r"Origin .* byte 9 of 13: a string has no end"),
    (TABLE_BYTES[:-1], r"Relation .* it ends early"),
    (TABLE_BYTES[:20], r"Relation .* 3 columns are announced, 0 are there"),
    (TABLE_BYTES + b"\0", r"Relation .* 1 bytes are left over"),
    (TABLE_BYTES.replace(b"repo\0d", b"repo\0x"), r"Relation .* byte 17 .* replica identity b'x'"),
    (b"S" + XID + b"\x02", r"Stream Start .* byte 5 of 6: first segment is 2"),
    (b"E", r"Stream Stop .* no stream block is open"),
    (b"A" + bytes(9), r"Stream Abort .* it ends early"),
    (b"P\0" + bytes(28) + b"gid", r"Prepare .* byte 30 of 33: a string has no end"),
    (b"P\0" + bytes(28) + b"gid\0x", r"Prepare .* byte 34 of 35: 1 bytes are left over"),
    (b"T\0\0\0\x01\x04\0\0\0\x07", r"Truncate .* byte 5 .* options 4"),
    (b"T\xff\xff\xff\xff\0", r"Truncate .* 4294967295 relations are announced, 0 bytes follow"),
    (b"T\0\0\0\x01\0\0\0\0\x09", r"Truncate .* byte 6 .* relation 9 was never described"),
    (b"I\0\0\0\x09N\0\0", r"Insert .* byte 1 of 8: relation 9 was never described"),
    (change(b"IK\0\x03nnn"), r"Insert .* byte 5 of 11: tuple marker b'K' is not one of b'N'"),
    (change(b"IN\0\x02nn"), r"Insert .* byte 6 of 10: 2 columns for public.repo, which has 3"),
    (change(b"IN\0\x03nn"), r"Insert .* byte 10 of 10: it ends inside column 2 of 3"),
    (change(b"IN\0\x03nnt\0\0"), r"Insert .* byte 10 of 13: it ends inside column 2 of 3"),
    (change(b"IN\0\x03nnt\0\0\0\x02a"), r"Insert .* byte 11 of 16: column 2 is longer than what is left"),
    (change(b"IN\0\x03t\xff\xff\xff\xffnn"), r"Insert .* byte 9 of 15: column 0 is longer"),
    (change(b"IN\0\x03nxn"), r"Insert .* byte 9 of 11: column 1 has the unknown kind b'x'"),
    (change(b"IN\0\x03nnnn"), r"Insert .* byte 11 of 12: 1 bytes are left over"),
    (change(b"UK\0\x03nnn"), r"Update .* it ends early"),
    (change(b"UK\0\x03nnnK\0\x03nnn"), r"Update .* byte 11 .* tuple marker b'K' is not one of b'N'"),
    (change(b"UK\0\x03nnnN\0\x02nn"), r"Update .* byte 12 .* 2 columns for public.repo"),
    (change(b"DN\0\x03nnn"), r"Delete .* tuple marker b'N' is not one of b'KO'"),
]


@pytest.mark.parametrize(("payload", "message"), BROKEN)
def test_malformed_message_is_reported_with_offset(payload: bytes, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        decoder(TABLE_BYTES).decode(payload)


def test_messages_not_allowed_in_stream_block_are_refused() -> None:
    for kind in b"BCScAbPpKr":
        with pytest.raises(Malformed, match="not allowed in the stream block of 600"):
            in_stream().decode(bytes((kind,)) + bytes(30))


def test_error_contains_no_values() -> None:
    with pytest.raises(Malformed) as caught:
        decoder(TABLE_BYTES).decode(change(b"IN\0\x03t\0\0\0\x06secretnt\0\0\0\x09secret"))
    assert "secret" not in str(caught.value)


def test_every_prefix_of_every_message_is_refused() -> None:
    for corpus in SESSIONS:
        made = Decoder()
        for payload in corpus:
            for end in range(len(payload)):
                if payload[:1] == b"A" and end == 9:
                    continue  # an abort without its LSN is whole in versions 2 and 3
                with pytest.raises(Malformed):
                    made.decode(payload[:end])
            made.decode(payload)


# Round trips.

LSNS = st.integers(0, 2**64 - 1).map(Lsn)
UINT32 = st.integers(0, 2**32 - 1)
TIMES = st.integers(-(2**52), 2**52)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=70)
VALUES = st.one_of(st.none(), st.just(UNCHANGED), st.binary(), st.binary().map(m.Binary))


@st.composite
def relations(draw: st.DrawFn) -> Relation:
    names = draw(st.lists(NAMES, unique=True, max_size=12))
    columns = tuple(Column(name, draw(UINT32), draw(st.integers(-(2**31), 2**31 - 1))) for name in names)
    keys = tuple(name for name in names if draw(st.booleans()))
    return Relation(draw(UINT32), draw(NAMES), draw(NAMES), draw(st.sampled_from("dnfi")), columns, keys)


@st.composite
def rows(draw: st.DrawFn, relation: Relation) -> m.Values:
    width = len(relation.columns)
    return draw(st.lists(VALUES, min_size=width, max_size=width))


@st.composite
def keys(draw: st.DrawFn, relation: Relation) -> m.Values:
    """Return an old key: only the identity, without omitted values."""
    present = st.one_of(st.none(), st.binary())
    return [draw(present) if c.name in relation.identity_columns else UNCHANGED for c in relation.columns]


@st.composite
def changes(draw: st.DrawFn) -> tuple[Relation, m.Message, bool]:
    """Return a relation, a message about it, and whether its old tuple is a whole row."""
    relation = draw(relations())
    xid = draw(st.none() | UINT32)
    full = draw(st.booleans())
    old = rows(relation) if full else keys(relation)
    message: m.Message = draw(
        st.one_of(
            st.builds(m.Insert, st.just(relation), rows(relation), st.just(xid)),
            st.builds(m.Update, st.just(relation), st.none() | old, rows(relation), st.just(xid)),
            st.builds(m.Delete, st.just(relation), old, st.just(xid)),
            st.builds(
                m.Truncate,
                st.lists(st.just(relation), max_size=3).map(tuple),
                st.booleans(),
                st.booleans(),
                st.just(xid),
            ),
            st.builds(m.LogicalMessage, st.booleans(), LSNS, NAMES, st.binary(), st.just(xid)),
            st.builds(m.TypeMessage, UINT32, NAMES, NAMES, st.just(xid)),
            st.builds(m.RelationMessage, relations(), st.just(xid)),
        )
    )
    return relation, message, full


CONTROLS = st.one_of(
    st.builds(m.Begin, LSNS, TIMES, UINT32),
    st.builds(m.Commit, LSNS, LSNS, TIMES),
    st.builds(m.Origin, LSNS, NAMES),
    st.builds(m.StreamStart, UINT32, st.booleans()),
    st.builds(m.StreamCommit, UINT32, LSNS, LSNS, TIMES),
    st.builds(m.StreamAbort, UINT32, UINT32, st.none(), st.none()),
    st.builds(m.StreamAbort, UINT32, UINT32, LSNS, TIMES),
    st.builds(m.RollbackPrepared, LSNS, LSNS, TIMES, TIMES, UINT32, NAMES),
    *(
        st.builds(kind, LSNS, LSNS, TIMES, UINT32, NAMES)
        for kind in (m.BeginPrepare, m.Prepare, m.StreamPrepare, m.CommitPrepared)
    ),
)


@given(changes())
def test_changes_come_back_as_they_were_encoded(case: tuple[Relation, m.Message, bool]) -> None:
    relation, message, full = case
    made = Decoder()
    xid = getattr(message, "xid", None)
    if xid is not None:
        made.decode(encode(m.StreamStart(xid, True)))
    made.decode(describe(relation, xid))
    got = made.decode(encode(message, full_before=full))
    assert (type(got), got) == (type(message), message)


@given(CONTROLS)
def test_controls_come_back_as_they_were_encoded(message: m.Message) -> None:
    got = Decoder().decode(encode(message))
    assert (type(got), got) == (type(message), message)


# Garbage decodes to a message or Malformed.


@given(st.binary(max_size=200), st.sampled_from([b"", *(bytes((k,)) for k in b"BCMORYIUDTSEcAbPpKr")]))
def test_random_bytes_decode_or_are_malformed(garbage: bytes, kind: bytes) -> None:
    for made in (decoder(TABLE_BYTES), in_stream()):
        with contextlib.suppress(Malformed):
            made.decode(kind + garbage)
