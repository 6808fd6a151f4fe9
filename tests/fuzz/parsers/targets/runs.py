"""Makes records of a transaction's changes as runs and one by one: the same records, positions and errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from producers.stream import messages as m
from schemas.events import UNCHANGED, Column, Relation
from schemas.positions import Lsn, Position
from tests.fuzz.parsers.target import Target, agree, pack, unpack
from tests.producers.both_ways import MS, Setup, outcomes, payloads
from tests.producers.pgoutput_encoder import encode

_COLUMNS: Final = (Column("id", 20), Column("name", 25), Column("note", 25), Column("size", 23))
KEYED: Final = Relation(16_400, "public", "t", "d", _COLUMNS, ("id",))
WHOLE: Final = replace(KEYED, replica_identity="f", identity_columns=tuple(column.name for column in _COLUMNS))
OTHER: Final = Relation(16_401, "public", "other", "d", _COLUMNS[:1], ("id",))
INSIDE: Final = Position(Lsn(80), 2)
"""A position inside the transaction: its first changes are in the topic already."""

SETUPS: Final = (
    Setup(KEYED),
    Setup(KEYED, complete_rows=True),
    Setup(KEYED, upserts=True),
    Setup(KEYED, largest=130),
    Setup(KEYED, copied=False),
    Setup(KEYED, recorded=INSIDE, confirmed=70),
    Setup(WHOLE),
    Setup(WHOLE, upserts=True, complete_rows=True),
)


def _run(data: bytes) -> None:
    if data:
        agree("runs and single changes", *outcomes(SETUPS[data[0] % len(SETUPS)], unpack(data[1:])))


def changes(relation: Relation, xid: int | None = None) -> list[m.Message]:
    """Return changes of every kind, some of which take a decision."""
    whole = relation.replica_identity == "f"
    row: m.Values = [b"1", b"a", b"b" * 9, b"-5"]
    old: m.Values = row if whole else [b"1", UNCHANGED, UNCHANGED, UNCHANGED]
    return [
        m.Insert(relation, row, xid),
        m.Update(relation, None, row, xid),
        m.Update(relation, None, [b"1", UNCHANGED, b"c", None], xid),
        m.Update(relation, old, [b"1", UNCHANGED, b"d", b"6"], xid),
        m.Update(relation, old, [b"2", b"e", UNCHANGED, b"7"], xid),
        m.Insert(OTHER, [b"9"], xid),
        m.Delete(relation, old, xid),
        m.Insert(relation, [b"3", None, None, None], xid),
        m.Insert(relation, [b"4", b"f" * 80, b"", b"0"], xid),
        m.Update(relation, None, [b"3", b"g", b"h", b"8"], xid),
        m.Insert(relation, [b"5", b"\xff", b"", b"many"], xid),
        m.Delete(relation, old, xid),
    ]


def transaction(relation: Relation) -> list[bytes]:
    """Return a transaction of these changes as a server sends it at its commit."""
    return payloads([m.Begin(Lsn(80), MS, 5), *changes(relation), m.Commit(Lsn(80), Lsn(88), MS)])


def in_block(relation: Relation) -> list[bytes]:
    """Return it as one that was sent in progress, read back after its Begin."""
    block = payloads(changes(relation, 600))
    begin, start, stop = m.Begin(Lsn(80), MS, 600), m.StreamStart(600, True), m.StreamStop()
    return [encode(begin), encode(start), *block, encode(stop), encode(m.Commit(Lsn(80), Lsn(88), MS))]


def _seeds() -> Iterator[bytes]:
    for number, setup in enumerate(SETUPS):
        yield bytes((number,)) + pack(transaction(setup.relation))
        yield bytes((number,)) + pack(in_block(setup.relation))


TARGET = Target(
    "runs of changes to records",
    _run,
    _seeds,
    dictionary=(
        b"U\0\0\x40\x10N\0\x04",
        b"D\0\0\x40\x10K\0\x04",
        b"I\0\0\x40\x11N\0\1",
        b"t\0\0\0\x01",
        b"n",
        b"u",
        b"O",
    ),
)
