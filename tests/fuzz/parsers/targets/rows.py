"""Converts rows of the stream to Kafka records with the codec in C and in Python, and reads accepted records back."""

from __future__ import annotations

from typing import Any

from producers.stream.pgoutput_fields import columns, columns_in_python
from schemas.errors import Malformed
from schemas.events import Op
from tests.fuzz.parsers import sample_tables
from tests.fuzz.parsers.sample_tables import SampleTable, Texts, chosen, is_text, read_all
from tests.fuzz.parsers.target import Target, agree, outcome
from tests.producers.pgoutput_encoder import row


def _run(data: bytes) -> None:
    if not data:
        return
    table, tail = chosen(data)
    tuples = []
    position = 0
    for _ in range(2):
        found = outcome(Malformed, columns, tail, position, table.width)
        agree("the two codecs' tuples", found, outcome(Malformed, columns_in_python, tail, position, table.width))
        if found[0] == "refused":
            return
        _, position = columns(tail, position, table.width)
        tuples.append(found[1][0])  # type: ignore[index]  # values and where they end
    old, new = tuples
    arguments = (table.prefix(Op.UPDATE), 3, 1_700_000_000_000)
    for name, rows in (("change", (new,)), ("delete", (old,)), ("update", (old, new))):
        python, compiled = getattr(table.python, name), getattr(table.compiled, name)
        made = outcome(Malformed, python, *arguments, *(list(each) for each in rows))
        agree(f"the two codecs' {name}", made, outcome(Malformed, compiled, *arguments, *rows))
        if made[0] == "value" and all(map(is_text, rows)):
            record: Any = made[1]
            key, value = record
            read_all(table, value)
            table.keys.decode_key(key)
    agree(
        "the two codecs' keys",
        outcome(Malformed, table.python.key, list(new)),
        outcome(Malformed, table.compiled.key, new),
    )


def _build(number: int, table: SampleTable, texts: Texts) -> bytes:
    del number
    return row(table.rows[0])[2:] + row(texts)[2:]


TARGET = Target(
    "rows of the stream to Avro",
    _run,
    lambda: sample_tables.seeds(_build),
    dictionary=(b"t\0\0\0\x01", b"n", b"u", b"b\0\0\0\0"),
)
