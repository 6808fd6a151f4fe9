"""Compares the rows that a program ends with, typed, with those that PostgreSQL has.

A program reports a value in one form per kind of type: an integer, a date as days and a time or timestamp as
microseconds (since 1970 or midnight), a number with a point as text, every other as text. What it has no type for is
null there, and may be among its exact values.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

from schemas.column_types import ColumnType, Kind
from tests.interop.changes import Table

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FITS: Final = re.compile(r"\d{4}-[^B]*$").match
"""A date or timestamp of the years 1 to 9999."""


@dataclass(frozen=True)
class Value:
    """A value as a program should have it: null, with the text in `exact`, where its type cannot represent it."""

    typed: object
    exact: str | None = None


def value_of(column: ColumnType, text: str | None) -> Value:  # noqa: PLR0911  # one kind, one return
    """Return the value of a text that PostgreSQL prints with DateStyle ISO in the time zone UTC."""
    if text is None:
        return Value(None)
    match column.kind:
        case Kind.BOOLEAN:
            return Value(text == "t")
        case Kind.INT | Kind.LONG:
            return Value(int(text))
        case Kind.FLOAT:
            return Value(_single(float(text)))
        case Kind.DOUBLE:
            return Value(float(text))
        case Kind.DECIMAL:
            return Value(None, text) if text == "NaN" else Value(Decimal(text))
        case Kind.DATE:
            return Value((date.fromisoformat(text) - _EPOCH.date()).days) if _FITS(text) else Value(None, text)
        case Kind.TIME:
            if text == "24:00:00":
                return Value(None, text)
            since = time.fromisoformat(text)
            return Value(_micros(datetime.combine(_EPOCH, since, UTC) - _EPOCH))
        case Kind.TIMESTAMP | Kind.TIMESTAMPTZ:
            return Value(_micros(_instant(text) - _EPOCH)) if _FITS(text) else Value(None, text)
        case _:
            return Value(text)


def _instant(text: str) -> datetime:
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _micros(distance: timedelta) -> int:
    return distance // timedelta(microseconds=1)


def _single(number: float) -> float:
    (rounded,) = struct.unpack("<f", struct.pack("<f", number))
    assert isinstance(rounded, float)
    return rounded


def same(column: ColumnType, read: Any, expected: object) -> bool:  # noqa: PLR0911  # as above
    """Whether what a program read, as it reports it in JSON, is the value."""
    if read is None or expected is None:
        return read is None and expected is None
    match expected:
        case bool():
            return read is expected
        case int():
            return not isinstance(read, bool) and str(read) == str(expected)
        case float():
            number = float(read)
            if column.kind is Kind.FLOAT:
                number = _single(number)
            if math.isnan(expected):
                return math.isnan(number)
            return number == expected and math.copysign(1, number) == math.copysign(1, expected)
        case Decimal():
            return Decimal(read) == expected
        case _:
            return isinstance(read, str) and read == expected


def differences(table: Table, read: Mapping[str, Any], exact: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield a line for each row or value that a program has otherwise than PostgreSQL.

    `read` is id (as text) → column → value, `exact` id → column → text, or None for a program that does not look there.
    """
    rows = {str(number): row for number, row in table.rows.items()}
    for number in sorted(rows.keys() - read.keys(), key=int):
        yield f"row {number} is missing"
    for number in sorted(read.keys() - rows.keys(), key=int):
        yield f"row {number} is not in the table"
    for number in sorted(rows.keys() & read.keys(), key=int):
        for name, column in table.columns.items():
            expected = value_of(column, rows[number][name])
            if name not in read[number]:
                yield f"row {number} lacks {name}"
            elif not same(column, read[number][name], expected.typed):
                yield f"row {number}, {name}: {str(read[number][name])[:60]!r}, not {str(expected.typed)[:60]!r}"
            if exact is not None and (found := exact.get(number, {}).get(name)) != expected.exact:
                yield f"row {number}, {name} in exact: {str(found)[:60]!r}, not {expected.exact!r}"
