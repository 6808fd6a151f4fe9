"""The comparison of foreign programs finds each kind of wrong value, and knows in which form a program has a type."""

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


def table(*rows: dict[str, str | None], key: tuple[str, ...] = ("id",)) -> Table:
    columns = {name: column_type(oid) for name, oid in COLUMNS.items()}
    return Table(columns, key, rows or (TEXTS,), {name: (oid, -1) for name, oid in COLUMNS.items()})


def found(*read: dict[str, Any], exact: list[dict[str, str]] | None = None) -> list[str]:
    return list(comparison.differences(table(), read, exact))


def test_values_in_a_program_s_forms_are_those_of_the_table() -> None:
    assert found(READ) == []
    assert found(READ, exact=[{"at": "infinity"}]) == []
    assert found({**READ, "day": "1969-12-31", "clock": "00:00:01.500", "zoned": "1970-01-01T00:00:00.25"}) == []


@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        ("flag", "t"), ("flag", 1), ("single", "0.2"), ("double", "0"), ("double", None), ("day", 0), ("day", "-1.0"),
        ("clock", "1500"), ("at", 9_223_372_036_854_775_807), ("zoned", 250), ("zoned", "1970-01-01"), ("text", ""),
    ],
)  # fmt: skip
def test_wrong_value_is_found(column: str, wrong: object) -> None:
    assert [line.split(":")[0] for line in found({**READ, column: wrong})] == [f"row 1, {column}"]


def test_missing_and_surplus_rows_columns_and_exact_values_are_found() -> None:
    assert found() == ["row 1 is missing"]
    assert found(READ, {**READ, "id": "2"}) == ["row 2 is not in the table"]
    assert found(READ, READ) == ["row 1 is not in the table"]
    assert found({name: READ[name] for name in READ if name != "day"}) == ["row 1 lacks day"]
    assert found(READ, exact=[{}]) == ["row 1, at in exact: 'None', not 'infinity'"]


def test_values_in_two_forms_are_different() -> None:
    rows = [{**TEXTS, "id": str(number)} for number in range(3)]
    read = [{**READ, "id": number} for number in range(3)]
    read[1]["day"] = "1969-12-31"
    assert list(comparison.differences(table(*rows), read, None)) == ["row 1, day: '1969-12-31', not '-1'"]


def test_rows_are_found_by_keys_without_a_type() -> None:
    rows = [{**TEXTS, "at": at} for at in ("infinity", "-infinity", "1970-01-01 00:00:00")]
    read = [{**READ, "at": at} for at in (None, None, 0)]
    keyed = table(*rows, key=("id", "at"))
    exact = [{"at": "-infinity"}, {"at": "infinity"}, {}]
    assert list(comparison.differences(keyed, read, exact)) == []
    assert list(comparison.differences(keyed, read[1:], None)) == ["row 1/-infinity is missing"]
    assert list(comparison.differences(keyed, read, [exact[0], exact[0], {}])) == [
        "row 1/infinity is missing",
        "row 1/None is not in the table",
    ]


def test_rows_that_only_a_missing_key_distinguishes_are_compared_with_the_nearest() -> None:
    rows = [{**TEXTS, "at": at, "text": text} for at, text in (("infinity", "a"), ("-infinity", "b"))]
    keyed = table(*rows, key=("id", "at"))
    read = [{**READ, "text": text} for text in ("b", "a")]
    assert list(comparison.differences(keyed, read, None)) == []
    assert list(comparison.differences(keyed, [read[0], read[0]], None)) == ["row 1/infinity, text: 'b', not 'a'"]


def test_form_is_the_one_that_most_values_are_in() -> None:
    forms = comparison.forms(table(), [READ, READ, {**READ, "day": "1969-12-31"}])
    assert {name: form.name for name, form in forms.items() if form.name} == {
        "day": "days", "clock": "microseconds", "zoned": "microseconds",
    }  # fmt: skip


def test_decimal_keeps_its_digits() -> None:
    column = column_type(1700, (12 << 16 | 3) + 4)
    own, unscaled = comparison._FORMS[column.kind]
    expected = comparison.value_of(column, "1.500").typed
    assert comparison.typed(column, own, "1.500") == expected == comparison.typed(column, unscaled, "1500")
    assert comparison.typed(column, own, "1500") != expected
    wide = column_type(1700, (38 << 16 | 10) + 4)
    digits = "9" * 28 + "." + "9" * 10
    assert comparison.typed(wide, unscaled, "9" * 38) == comparison.value_of(wide, digits).typed
    assert comparison.value_of(column, "NaN") == comparison.Value(None, "NaN")
