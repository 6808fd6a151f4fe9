"""Tables whose keys are not a bigint, and one that is truncated.

A record's key has such a value as PostgreSQL's text, its row has it typed: a program has to find one row by both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

Key = tuple[str, ...]
"""A value for each key column, as text."""


@dataclass(frozen=True)
class Keyed:
    """A table with a key of these types, and six keys: four of rows that a snapshot finds, two of later ones."""

    name: str
    types: tuple[str, ...]
    keys: tuple[Key, Key, Key, Key, Key, Key]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(f"key_{place}" for place in range(1, len(self.types) + 1))


def _single(name: str, type_: str, *values: str) -> Keyed:
    one, two, three, four, five, six = ((value,) for value in values)
    return Keyed(name, (type_,), (one, two, three, four, five, six))


_UUIDS: Final = tuple(f"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1{digit}" for digit in range(6))
_INSTANTS: Final = (
    "2024-02-29 12:34:56.789+03",
    "0001-01-01 00:00:00+00",
    "9999-12-31 23:59:59.999999+00",
    "1969-12-31 23:59:59.999999+00",
    "1970-01-01 00:00:00+00",
    "2024-02-29 12:34:56.789001+03",
)

KEYED: Final = (
    _single("keyed_uuid", "uuid", *_UUIDS),
    _single("keyed_text", "text", "", 'tab\t "quoted"', "é 名 \U0001f600", "it's", "NULL", "x" * 300),
    _single("keyed_numeric", "numeric", "1.50", "-0.001", "100000000000000000000.5", "0", "1e-20", "7"),
    _single("keyed_decimal", "numeric(12,3)", "1.5", "-0.001", "999999999.999", "0", "100", "-7.25"),
    _single("keyed_date", "date", "2024-02-29", "0001-01-01", "9999-12-31", "1969-12-31", "1970-01-01", "2000-01-01"),
    _single("keyed_timestamptz", "timestamptz", *_INSTANTS),
    Keyed(
        "keyed_composite",
        ("bigint", "uuid", "timestamptz", "varchar(20)"),
        (
            ("1", _UUIDS[0], _INSTANTS[0], "a"),
            ("1", _UUIDS[0], _INSTANTS[0], "b"),
            ("1", _UUIDS[0], _INSTANTS[1], "a"),
            ("1", _UUIDS[1], _INSTANTS[0], "a"),
            ("-2", _UUIDS[0], _INSTANTS[0], "a"),
            ("9223372036854775807", _UUIDS[2], _INSTANTS[2], ""),
        ),
    ),
)

UNFIT: Final = Keyed(
    "keyed_unfit",
    ("timestamptz", "numeric(5,2)"),
    (
        ("infinity", "1"),
        ("-infinity", "1"),
        ("2024-02-29 12:00:00+00", "NaN"),
        ("infinity", "NaN"),
        ("-infinity", "NaN"),
        ("2024-02-29 12:00:00+00", "2"),
    ),
)
"""Keys with values that their Avro types cannot represent: null in the row, distinct in the record's key."""

EMPTIED: Final = "emptied"
"""A table that is truncated between two inserts."""


def create(connection: psycopg.Connection[Any]) -> None:
    """Create the tables, with the rows that a snapshot is to find."""
    for table in (*KEYED, UNFIT):
        listed = ", ".join(f"{name} {type_}" for name, type_ in zip(table.columns, table.types, strict=True))
        connection.execute(
            f"CREATE TABLE {table.name} ({listed}, note text, PRIMARY KEY ({', '.join(table.columns)}))".encode()
        )
        for key in table.keys[:4]:
            _insert(connection, table, key, "first")
    connection.execute(f"CREATE TABLE {EMPTIED} (id bigint PRIMARY KEY, note text)".encode())
    connection.execute(f"INSERT INTO {EMPTIED} SELECT n, 'before' FROM generate_series(1, 20) n".encode())


def change(connection: psycopg.Connection[Any]) -> None:
    """Insert, update and delete rows, change a key, insert a deleted row again; truncate the other table."""
    for table in (*KEYED, UNFIT):
        one, two, three, four, five, six = table.keys
        _insert(connection, table, five, "first")
        connection.execute(sql.SQL("UPDATE {} SET note = 'second' WHERE {}").format(_name(table), _is(table, one)))
        connection.execute(sql.SQL("DELETE FROM {} WHERE {}").format(_name(table), _is(table, two)))
        changed = sql.SQL("UPDATE {} SET ({}) = ROW ({}) WHERE {}")
        connection.execute(changed.format(_name(table), _columns(table), _values(table, six), _is(table, three)))
        connection.execute(sql.SQL("DELETE FROM {} WHERE {}").format(_name(table), _is(table, four)))
        _insert(connection, table, four, "again")
    connection.execute(f"INSERT INTO {EMPTIED} VALUES (21, 'before')".encode())
    connection.execute(f"TRUNCATE {EMPTIED}".encode())
    connection.execute(f"INSERT INTO {EMPTIED} SELECT n, 'after' FROM generate_series(15, 30) n".encode())


def _insert(connection: psycopg.Connection[Any], table: Keyed, key: Sequence[str], note: str) -> None:
    connection.execute(
        sql.SQL("INSERT INTO {} VALUES ({}, {})").format(_name(table), _values(table, key), sql.Literal(note))
    )


def _is(table: Keyed, key: Sequence[str]) -> sql.Composed:
    return sql.SQL("({}) = ({})").format(_columns(table), _values(table, key))


def _name(table: Keyed) -> sql.Identifier:
    return sql.Identifier(table.name)


def _columns(table: Keyed) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, table.columns))


def _values(table: Keyed, key: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{}::{}").format(sql.Literal(value), sql.SQL(type_))
        for value, type_ in zip(key, table.types, strict=True)
    )
