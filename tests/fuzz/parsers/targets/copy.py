"""Converts lines of COPY to Kafka records with the codec in C and in Python, and reads accepted records back."""

from __future__ import annotations

from typing import Any

from schemas.errors import Malformed
from schemas.positions import Lsn
from tests.fuzz.parsers import sample_tables
from tests.fuzz.parsers.sample_tables import SampleTable, Texts, chosen, is_text, read_all
from tests.fuzz.parsers.target import Target, agree, outcome
from tests.schemas.codec.rows import copy_line


def _run(data: bytes) -> None:
    if not data:
        return
    table, lines = chosen(data)
    prefix = table.python.copy_prefix(lsn=Lsn(1 << 40), ordinal=3, ts_ms=1_700_000_000_000)
    made = outcome(Malformed, table.python.encode_copy_chunk, lines, prefix)
    agree("the two codecs' chunks", made, outcome(Malformed, table.compiled.encode_copy_chunk, lines, prefix))
    if made[0] == "value" and is_text([lines]):
        chunk: Any = made[1]
        keys, values = chunk
        agree("the number of lines", len(keys), len(values), lines.count(b"\n"))
        for key, value in zip(keys, values, strict=True):
            read_all(table, value)
            table.keys.decode_key(key)


def _build(number: int, table: SampleTable, texts: Texts) -> bytes:
    del number
    return copy_line(list(texts)) + copy_line(list(table.rows[0]))


TARGET = Target(
    "lines of COPY to Avro",
    _run,
    lambda: sample_tables.seeds(_build),
    dictionary=(b"\t", b"\n", rb"\N", rb"\\", rb"\t", b" BC", b"+00", b"infinity"),
)
