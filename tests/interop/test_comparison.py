"""The comparison of foreign programs finds each kind of wrong value, and the changes are those that it is for."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.column_types import column_type
from tests.interop import comparison
from tests.interop.changes import Table

COLUMNS = {
    "id": 20, "flag": 16, "single": 700, "double": 701, "day": 1082, "clock": 1083, "at": 1114, "zoned": 1184,
    "text": 25,
}  # fmt: skip
TEXTS: dict[str, str | None] = {
    "id": "1", "flag": "t", "single": "0.1", "double": "-0", "day": "1969-12-31", "clock": "00:00:01.5",
    "at": "infinity", "zoned": "1970-01-01 00:00:00.25+00", "text": None,
}  # fmt: skip
READ: dict[str, Any] = {
    "id": "1", "flag": True, "single": "0.10000000149011612", "double": "-0.0", "day": -1, "clock": "1500000",
    "at": None, "zoned": 250000, "text": None,
}  # fmt: skip


def found(read: dict[str, Any], exact: dict[str, Any] | None = None) -> list[str]:
    columns = {name: column_type(oid) for name, oid in COLUMNS.items()}
    table = Table(columns, {1: TEXTS}, {name: (oid, -1) for name, oid in COLUMNS.items()})
    return list(comparison.differences(table, read, exact))


def test_values_in_a_program_s_forms_are_those_of_the_table() -> None:
    assert found({"1": READ}) == []
    assert found({"1": READ}, {"1": {"at": "infinity"}}) == []


@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        ("id", 2), ("id", None), ("flag", "t"), ("flag", 1), ("single", "0.2"), ("double", "0"), ("double", None),
        ("day", 0), ("clock", "1500"), ("at", 9_223_372_036_854_775_807), ("zoned", 250), ("text", ""),
    ],
)  # fmt: skip
def test_wrong_value_is_found(column: str, wrong: object) -> None:
    assert [line.split(":")[0] for line in found({"1": {**READ, column: wrong}})] == [f"row 1, {column}"]


def test_missing_and_surplus_rows_columns_and_exact_values_are_found() -> None:
    assert found({}) == ["row 1 is missing"]
    assert found({"1": READ, "2": READ}) == ["row 2 is not in the table"]
    assert found({"1": {name: READ[name] for name in READ if name != "day"}}) == ["row 1 lacks day"]
    assert found({"1": READ}, {}) == ["row 1, at in exact: 'None', not 'infinity'"]


def test_decimal_keeps_its_digits() -> None:
    column = column_type(1700, (12 << 16 | 3) + 4)
    assert comparison.same(column, "1.500", comparison.value_of(column, "1.500").typed)
    assert not comparison.same(column, "1500", comparison.value_of(column, "1.500").typed)
    assert comparison.value_of(column, "NaN") == comparison.Value(None, "NaN")
