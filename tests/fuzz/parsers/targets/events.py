"""Reads records of a topic, whole and broken, with headrace's readers in C and in Python and with fastavro."""

from __future__ import annotations

from schemas.codec.header import HeaderReader
from schemas.errors import Malformed
from schemas.events import Op
from tests.fuzz.parsers import sample_tables
from tests.fuzz.parsers.sample_tables import SampleTable, Texts, chosen
from tests.fuzz.parsers.target import Target, Violation, agree, outcome


def _run(data: bytes) -> None:
    if not data:
        return
    table, record = chosen(data)
    python, compiled = (
        (kind, repr(event)) for kind, event in (outcome(Malformed, read, record) for read in table.projections)
    )
    agree("the two codecs", python, compiled)
    fresh = outcome(Malformed, HeaderReader(), record)
    if python[0] == "value" and fresh[0] == "refused":
        raise Violation("an event with an invalid header")
    whole = outcome(Malformed, table.whole.decode, record)
    if python[0] == "value":
        agree("headrace's reader and fastavro", python[1], repr(whole[1]))
    outcome(Malformed, table.keys.decode_key, record)


def _build(number: int, table: SampleTable, texts: Texts) -> bytes:
    first = table.rows[0]
    ordinal = 3
    match number:
        case 0:
            return bytes(table.python.change(table.prefix(Op.CREATE), ordinal, 5, texts)[1])
        case 1:
            return bytes(table.python.update(table.prefix(Op.UPDATE), ordinal, 5, first, texts)[1])
        case _:
            return bytes(table.python.delete(table.prefix(Op.DELETE), ordinal, 5, texts)[1])


TARGET = Target(
    "records of a topic to events",
    _run,
    lambda: sample_tables.seeds(_build),
    dictionary=(b"\0", b"\x02", b"\x04", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"),
)
