"""Compares the stored answers of foreign programs with what headrace publishes and pins now, and with their page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from schemas.column_types import Kind, column_type
from tests.interop import changes, reading, results
from tests.interop.columns import COLUMNS, Tried
from tests.interop.reading import PROGRAMS

EVENTS = Path(__file__).parents[2] / "docs" / "reference" / "events.md"
NAMES = [column.name for column in COLUMNS]

EXPECTED: dict[Kind, tuple[str, str, str, str, str]] = {
    Kind.BOOLEAN: ("BOOLEAN", "boolean", "BOOLEAN", "Bool", "boolean"),
    Kind.INT: ("INT32", "integer", "INT", "Int32", "number"),
    Kind.LONG: ("INT64", "bigint", "BIGINT", "Int64", "bigint"),
    Kind.FLOAT: ("FLOAT", "real", "FLOAT", "Float32", "number"),
    Kind.DOUBLE: ("DOUBLE", "double precision", "DOUBLE", "Float64", "number"),
    Kind.TEXT: ("STRING", "text", "STRING", "String", "string"),
    Kind.UUID: ("STRING io.debezium.data.Uuid", "uuid", "STRING", "UUID", "string"),
    Kind.DATE: ("INT32 Date, days", "date", "DATE", "Date32", "number, days"),
    Kind.TIME: (
        "INT64 io.debezium.time.MicroTime, microseconds", "time(6) without time zone", "BIGINT, microseconds",
        "Int64, microseconds", "bigint, microseconds",
    ),
    Kind.TIMESTAMP: (
        "INT64 io.debezium.time.MicroTimestamp, microseconds", "timestamp(6) without time zone", "BIGINT, microseconds",
        "Int64, microseconds", "bigint, microseconds",
    ),
    Kind.TIMESTAMPTZ: (
        "INT64 io.debezium.time.MicroTimestamp, microseconds", "timestamp(6) without time zone", "BIGINT, microseconds",
        "DateTime64(6)", "bigint, microseconds",
    ),
}  # fmt: skip
"""Kind of column → what each program has for it."""


def test_page_shows_what_is_stored() -> None:
    assert results.PAGE.read_text(encoding="utf-8") == results.page(results.read())


def test_every_program_answered_for_every_column_and_key() -> None:
    stored = results.read()
    assert list(stored["columns"]) == NAMES
    assert list(stored["programs"]) == list(results.TITLES)
    for program in PROGRAMS:
        seen = stored["programs"][program.name]
        assert list(seen["types"]) == NAMES, program
        assert {table: list(key) for table, key in seen["keys"].items()} == {
            name: list(key) for name, key in stored["keys"].items() if name in seen["keys"]
        }
        assert seen["keys"].keys() == set(changes.TABLES) - reading.LIMITS.keys()
        assert list(seen["compared"]) == list(program.registries)
        assert seen.keys() & set(reading.LIMITS.values()) == set(program.limits)


def test_what_is_stored_was_seen_with_the_versions_that_are_pinned() -> None:
    stored = results.read()
    assert stored["servers"] == results.servers()
    for program in PROGRAMS:
        assert stored["programs"][program.name]["versions"] == program.versions()


def test_answer_other_than_the_stored_one_is_named() -> None:
    stored = results.read()
    assert results.changes(stored, stored) == []
    seen = json.loads(json.dumps(stored))
    seen["programs"]["flink"]["types"]["v_date"] = ["INT", "days"]
    assert results.changes({"programs": {"flink": seen["programs"]["flink"]}}, stored) == [
        "programs/flink/types/v_date is ['INT', 'days'], and ['DATE', ''] is stored"
    ]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_programs_were_shown_the_type_that_headrace_publishes_now(column: Tried) -> None:
    stored = results.read()
    type_ = column_type(*stored["columns"][column.name])
    seen = tuple(results.shown(*stored["programs"][program]["types"][column.name]) for program in results.TITLES)
    if type_.kind is Kind.DECIMAL:
        decimal = f"{type_.precision}, {type_.scale}"
        connect = f"BYTES Decimal scale {type_.scale}"
        numeric = f"numeric({decimal.replace(' ', '')})"
        assert seen == (connect, numeric, f"DECIMAL({decimal})", f"Decimal({decimal})", "Buffer, unscaled")
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
