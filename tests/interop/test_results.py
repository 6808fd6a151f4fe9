"""Compares the stored types of foreign programs with what headrace publishes, and their page with both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from schemas.column_types import Kind, column_type
from tests.interop import results
from tests.interop.columns import COLUMNS, Tried

EVENTS = Path(__file__).parents[2] / "docs" / "reference" / "events.md"
NAMES = [column.name for column in COLUMNS]

EXPECTED: dict[Kind, tuple[str, str, str, str]] = {
    Kind.BOOLEAN: ("BOOLEAN", "BOOLEAN", "Nullable(Bool)", "boolean"),
    Kind.INT: ("INT32", "INT", "Nullable(Int32)", "number"),
    Kind.LONG: ("INT64", "BIGINT", "Nullable(Int64)", "bigint"),
    Kind.FLOAT: ("FLOAT", "FLOAT", "Nullable(Float32)", "number"),
    Kind.DOUBLE: ("DOUBLE", "DOUBLE", "Nullable(Float64)", "number"),
    Kind.TEXT: ("STRING", "STRING", "Nullable(String)", "string"),
    Kind.UUID: ("STRING io.debezium.data.Uuid", "STRING", "Nullable(UUID)", "string"),
    Kind.DATE: ("INT32 org.apache.kafka.connect.data.Date", "DATE", "Nullable(Date32)", "number"),
    Kind.TIME: ("INT64 io.debezium.time.MicroTime", "BIGINT", "Nullable(Int64)", "bigint"),
    Kind.TIMESTAMP: ("INT64 io.debezium.time.MicroTimestamp", "BIGINT", "Nullable(Int64)", "bigint"),
    Kind.TIMESTAMPTZ: ("INT64 io.debezium.time.MicroTimestamp", "BIGINT", "Nullable(DateTime64(6))", "bigint"),
}
"""Kind of column → what Kafka Connect, Flink, ClickHouse and kafkajs have for it."""


def test_page_shows_what_is_stored() -> None:
    assert results.PAGE.read_text(encoding="utf-8") == results.page(results.read())


def test_every_program_has_a_type_for_every_column() -> None:
    stored = results.read()
    assert list(stored["columns"]) == NAMES
    assert stored["programs"].keys() == results.TITLES.keys()
    for program, types in stored["programs"].items():
        assert list(types) == NAMES, program


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_programs_were_shown_the_type_that_headrace_publishes_now(column: Tried) -> None:
    stored = results.read()
    name = column.name
    type_ = column_type(*stored["columns"][name])
    seen = tuple(stored["programs"][program][name] for program in results.TITLES)
    if type_.kind is Kind.DECIMAL:
        decimal = f"{type_.precision}, {type_.scale}"
        connect = f"BYTES org.apache.kafka.connect.data.Decimal scale {type_.scale}"
        assert seen == (connect, f"DECIMAL({decimal})", f"Nullable(Decimal({decimal}))", "Buffer")
    else:
        assert seen == EXPECTED[type_.kind]


def test_every_type_that_events_names_is_tried() -> None:
    text = EVENTS.read_text(encoding="utf-8")
    [table] = re.findall(r"\| PostgreSQL \| Avro .*\n\|.*\n((?:\|.*\n)+)", text)
    tried = " ".join(column.label for column in COLUMNS)
    words = {
        "numeric(p, s) with 0 ≤ s ≤ p": "numeric(12,3)",
        "numeric without precision": "numeric ",
        "char": "char(5)",
    }
    words |= {"varchar": "varchar(", "arrays": "[]", "ranges": "range", "enums": "enum", "domains": "domain of"}
    words |= {"composites and every other": "composite"}
    for line in table.splitlines():
        for name in re.split(r", (?![^(]*\))", line.split("|")[1].strip()):
            assert words.get(name, name) in tried, name
