"""Compares a topic, folded by key, with its table: value by value, as the server's output functions print them."""

from __future__ import annotations

import math
import struct
from collections import Counter
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final

import psycopg
from psycopg import sql

from schemas.events import UNCHANGED
from tests.producers.folding import Record, fold, require_order

_COLUMNS: Final = """
SELECT attname::text, atttypid::bigint,
       (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum)
  FROM pg_attribute
 WHERE attrelid = format('%%I.%%I', %s::text, %s::text)::regclass
   AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
_REAL: Final = 700
_DOUBLE: Final = 701
_BOOL: Final = 16

_UNKNOWN: Final = "<unknown>"

INCOMPLETE: Final = "values that the stream omitted are in no record of their key"
"""A difference that docs/reference/events.md documents, with its remedy: re-snapshot the table."""

Printed = tuple[str | None, ...]


def compared(connection: psycopg.Connection[Any], records: list[Record], table: tuple[str, str]) -> tuple[str, int]:
    """Return how a folded topic differs from the table (empty if it does not), and the table's number of rows.

    `connection` shows values in the text that headrace encodes.
    """
    columns = connection.execute(_COLUMNS, table).fetchall()
    expected = Counter(_table_rows(connection, table, [(name, kind) for name, kind, _ in columns]))
    rows = sum(expected.values())
    try:
        require_order(records)
        folded = fold(records).values()
    except AssertionError as error:
        return str(error), rows
    found = Counter(tuple(_printed(row, *column) for column in columns) for row in folded)
    missing, surplus = list((expected - found).elements()), list((found - expected).elements())
    if not missing and not surplus:
        return "", rows
    if _same_but_for_what_is_unknown(missing, surplus):
        return INCOMPLETE, rows
    names = [name for name, *_ in columns]
    return (
        f"{rows} rows in the table, {sum(found.values())} in the topic; columns {names};"
        f" only in the table: {_shown(missing)}; only in the topic: {_shown(surplus)}"
    ), rows


def _same_but_for_what_is_unknown(missing: list[Printed], surplus: list[Printed]) -> bool:
    left = list(missing)
    for row in surplus:
        known = [at for at, text in enumerate(row) if text != _UNKNOWN]
        found = next((each for each in left if all(each[at] == row[at] for at in known)), None)
        if found is None or len(known) == len(row):
            return False
        left.remove(found)
    return not left


def _table_rows(
    connection: psycopg.Connection[Any], table: tuple[str, str], columns: list[tuple[str, int]]
) -> list[Printed]:
    # A cast to text is a different function for some types, and a composite of nulls IS NULL.
    shown = sql.SQL("CASE WHEN num_nonnulls({0}) = 1 THEN format('%s', {0}) END")
    query = sql.SQL("SELECT {} FROM {}").format(
        sql.SQL(", ").join(shown.format(sql.Identifier(name)) for name, _ in columns), sql.Identifier(*table)
    )
    return [
        tuple(_canonical(text, kind) for text, (_, kind) in zip(row, columns, strict=True))
        for row in connection.execute(query)
    ]


def _canonical(text: str | None, kind: int) -> str | None:
    if text is None:
        return None
    if kind in (_REAL, _DOUBLE):
        return _number(float(text), kind)
    return text


def _number(value: float, kind: int) -> str:
    if kind == _REAL:
        (value,) = struct.unpack("<f", struct.pack("<f", value))
    return "nan" if math.isnan(value) else repr(value)


def _printed(row: dict[str, object], name: str, kind: int, default: str | None) -> str | None:  # noqa: PLR0911  # one for each type
    if name not in row:
        # The record is older than the column: null there, or the default that it was added with.
        return default
    match row[name]:
        case None:
            return None
        case bool() as flag:
            return "t" if flag else "f"
        case float() as number:
            return _number(number, kind)
        case datetime() as moment:
            zone = "+00" if moment.tzinfo else ""
            return f"{moment.date().isoformat()} {_clock(moment.time())}{zone}"
        case date() as day:
            return day.isoformat()
        case time() as clock:
            return _clock(clock)
        case Decimal() as decimal:
            return f"{decimal:f}"
        case value if value is UNCHANGED:
            return _UNKNOWN
        case value:
            return str(value)


def _clock(value: time) -> str:
    fraction = f".{value.microsecond:06}".rstrip("0") if value.microsecond else ""
    return f"{value.hour:02}:{value.minute:02}:{value.second:02}{fraction}"


def _shown(rows: list[Printed]) -> str:
    short = [tuple(None if text is None else text[:24] for text in row) for row in rows[:3]]
    return f"{short}{' …' if len(rows) > 3 else ''}"
