"""Compares the rows that a program ends with, typed, with those that PostgreSQL has.

A program reports a value as its users see it: a boolean, or a text or number. Its form of a column, such as days for a
date, is the one in which most of its values are PostgreSQL's; a value in another form is different. What a type cannot
represent is null there, and may be among the exact values.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

from schemas.column_types import ColumnType, Kind
from tests.interop.changes import Table

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FITS: Final = re.compile(r"\d{4}-[^B]*$").match
"""A date or timestamp of the years 1 to 9999."""

Read = Mapping[str, Any]
"""A row as a program has it: column → value."""


@dataclass(frozen=True)
class Value:
    """A value as a program should have it: null, with the text in `exact`, where its type cannot represent it."""

    typed: object
    exact: str | None = None


@dataclass(frozen=True)
class Form:
    """What a program's value is, and how it is read; an empty name is PostgreSQL's own."""

    name: str
    read: Callable[[ColumnType, Any], object]


def value_of(column: ColumnType, text: str | None) -> Value:
    """Return the value of a text that PostgreSQL prints with DateStyle ISO in the time zone UTC."""
    if text is None:
        return Value(None)
    if column.kind is Kind.BOOLEAN:
        return Value(text == "t")
    unfit = {
        Kind.DECIMAL: text == "NaN",
        Kind.TIME: text == "24:00:00",
        **dict.fromkeys((Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ), not _FITS(text)),
    }
    return Value(None, text) if unfit.get(column.kind) else Value(_own(column, text))


def _own(column: ColumnType, read: Any) -> object:  # noqa: PLR0911  # one kind, one return
    """Read PostgreSQL's own form: dates are days, times microseconds, timestamps microseconds since 1970."""
    text = str(read)
    match column.kind:
        case Kind.BOOLEAN:
            if not isinstance(read, bool):
                raise ValueError(text)
            return read
        case Kind.INT | Kind.LONG:
            return int(text)
        case Kind.FLOAT:
            return _number(_single(float(text)))
        case Kind.DOUBLE:
            return _number(float(text))
        case Kind.DECIMAL:
            return Decimal(text)
        case Kind.DATE:
            return (date.fromisoformat(text) - _EPOCH.date()).days
        case Kind.TIME:
            return _micros(datetime.combine(_EPOCH, time.fromisoformat(text), UTC) - _EPOCH)
        case Kind.TIMESTAMP | Kind.TIMESTAMPTZ:
            parsed = datetime.fromisoformat(text)
            return _micros((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)) - _EPOCH)
        case _:
            return text


def _integer(_: ColumnType, read: Any) -> object:
    return int(str(read))


_OWN: Final = Form("", _own)
_MICROSECONDS: Final = Form("microseconds", _integer)
_FORMS: Final[Mapping[Kind, tuple[Form, ...]]] = {
    Kind.DATE: (_OWN, Form("days", _integer)),
    Kind.TIME: (_OWN, _MICROSECONDS),
    Kind.TIMESTAMP: (_OWN, _MICROSECONDS),
    Kind.TIMESTAMPTZ: (_OWN, _MICROSECONDS),
    Kind.DECIMAL: (_OWN, Form("unscaled", lambda column, read: Decimal(f"{int(str(read))}E-{column.scale}"))),
}


def _number(number: float) -> object:
    """Return a number that equals no other: not even NaN or a zero of the other sign."""
    return repr(number) if math.isnan(number) or number == 0 else number


def _micros(distance: timedelta) -> int:
    return distance // timedelta(microseconds=1)


def _single(number: float) -> float:
    (rounded,) = struct.unpack("<f", struct.pack("<f", number))
    assert isinstance(rounded, float)
    return rounded


class NotInForm:
    """Equals nothing."""


def typed(column: ColumnType, form: Form, read: Any) -> object:
    """Return a program's value as `Value.typed` has it; an object that equals nothing if it is not in that form."""
    if read is None:
        return None
    try:
        return form.read(column, read)
    except (ValueError, ArithmeticError):
        return NotInForm()


def forms(table: Table, read: Sequence[Read]) -> dict[str, Form]:
    """Return the form of each column."""
    found = {}
    for name, column in table.columns.items():
        values = {value_of(column, row[name]).typed for row in table.rows} - {None}
        found[name] = max(
            _FORMS.get(column.kind, (_OWN,)),
            key=lambda form: sum(typed(column, form, row.get(name)) in values for row in read),
        )
    return found


def differences(table: Table, read: Sequence[Read], exact: Sequence[Mapping[str, str]] | None) -> Iterator[str]:
    """Yield a line for each row or value that a program has otherwise than PostgreSQL.

    `exact` has what each row of `read` has there (column → text), or is None for a program that does not look there.
    Two rows of a program that has no exact values may have equal keys, if these have values without a type.
    """
    form = forms(table, read)
    known = exact is not None
    left = list(zip(read, exact or [{}] * len(read), strict=True))
    for row in table.rows:
        expected = {name: value_of(column, row[name]) for name, column in table.columns.items()}
        shown = f"row {'/'.join(str(row[name]) for name in table.key)[:60]}"
        same = [
            pair
            for pair in left
            if all(
                typed(table.columns[name], form[name], pair[0].get(name)) == expected[name].typed
                and (not known or pair[1].get(name) == expected[name].exact)
                for name in table.key
            )
        ]
        if not same:
            yield f"{shown} is missing"
            continue
        lines = {place: list(_of_row(table, form, expected, *pair, known=known)) for place, pair in enumerate(same)}
        nearest = min(lines, key=lambda place: len(lines[place]))
        left.remove(same[nearest])
        yield from (f"{shown}{line}" for line in lines[nearest])
    for surplus, _ in left:
        yield f"row {'/'.join(str(surplus.get(name)) for name in table.key)[:60]} is not in the table"


def _of_row(
    table: Table,
    form: Mapping[str, Form],
    expected: Mapping[str, Value],
    read: Read,
    exact: Mapping[str, str],
    *,
    known: bool,
) -> Iterator[str]:
    for name, column in table.columns.items():
        value = expected[name]
        if name not in read:
            yield f" lacks {name}"
        elif typed(column, form[name], read[name]) != value.typed:
            yield f", {name}: {str(read[name])[:60]!r}, not {str(value.typed)[:60]!r}"
        if known and exact.get(name) != value.exact:
            yield f", {name} in exact: {str(exact.get(name))[:60]!r}, not {value.exact!r}"
