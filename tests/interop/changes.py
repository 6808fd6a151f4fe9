"""Two tables with every type, and their changes: inserts, updates, deletes, changed keys, changed columns.

Those with other keys are in `keyed`, and are created and changed along with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from schemas.column_types import ColumnType, column_type
from tests.interop import keyed
from tests.interop.columns import COLUMNS, TYPES

LOGGED: Final = "logged"
"""The table with replica identity full: an update has the whole old row."""
UPSERTED: Final = "upserted"
"""The table with the default replica identity, whose updates are published as reads (`upsert_tables`)."""
WITH_EVERY_TYPE: Final = (LOGGED, UPSERTED)
TABLES: Final = (*WITH_EVERY_TYPE, *(table.name for table in (*keyed.KEYED, keyed.UNFIT)), keyed.EMPTIED)

STREAMED: Final = 1_000
"""Added to a row's id when it comes from the stream and not from the snapshot."""

_CHANGES: Final = (
    "UPDATE {} SET note = 'second' WHERE id % 3 = 0",
    "UPDATE {} SET v_integer = -v_integer, v_date = v_date WHERE id % 4 = 1 AND v_integer > -5",
    "UPDATE {} SET id = id + 10000 WHERE id % 7 = 1",
    "DELETE FROM {} WHERE id % 5 = 4 AND id < 1000",
    "INSERT INTO {} (id, note) VALUES (4, 'again'), (9, 'again')",
    "UPDATE {} SET id = id - 10000 WHERE id IN (10001, 11002)",
    "ALTER TABLE {} ADD COLUMN added numeric(9,2), ADD COLUMN added_at timestamptz",
    "UPDATE {} SET added = id + 0.25, added_at = '2026-01-02 03:04:05.678901+00' WHERE id % 2 = 0",
    "ALTER TABLE {} DROP COLUMN dropped",
    "INSERT INTO {} (id, note, added) VALUES (5000, NULL, -0.01)",
    "UPDATE {} SET v_real = v_real * 2 WHERE id IN (1, 1001)",
)


@dataclass(frozen=True)
class Table:
    """What PostgreSQL has at the end.

    `key` are the columns of the primary key; a row has each column's text, as its output function prints it; `types` is
    column → OID and modifier of its type.
    """

    columns: Mapping[str, ColumnType]
    key: Sequence[str]
    rows: Sequence[Mapping[str, str | None]]
    types: Mapping[str, tuple[int, int]]


def create(connection: psycopg.Connection[Any]) -> None:
    """Create the types and the tables, with the rows that a snapshot is to find."""
    connection.execute(TYPES.encode())
    listed = ", ".join(f"{column.name} {column.type}" for column in COLUMNS)
    for table in WITH_EVERY_TYPE:
        connection.execute(f"CREATE TABLE {table} (id bigint PRIMARY KEY, note text, dropped int, {listed})".encode())
        _insert(connection, table, 0)
    connection.execute(f"ALTER TABLE {LOGGED} REPLICA IDENTITY FULL".encode())
    keyed.create(connection)


def change(connection: psycopg.Connection[Any]) -> None:
    """Make every kind of change."""
    for table in WITH_EVERY_TYPE:
        _insert(connection, table, STREAMED)
        for statement in _CHANGES:
            connection.execute(sql.SQL(statement.replace("%", "%%")).format(sql.Identifier(table)), ())
    keyed.change(connection)


def _insert(connection: psycopg.Connection[Any], table: str, added: int) -> None:
    """Write one row of nulls, and one for each place in the longest list of values."""
    for place in range(1 + max(len(column.values) for column in COLUMNS)):
        values = [
            sql.SQL("{}::{}").format(sql.Literal(column.values[place - 1]), sql.SQL(column.type))
            if 0 < place <= len(column.values)
            else sql.SQL("NULL")
            for column in COLUMNS
        ]
        head = [sql.Literal(place + added), sql.Literal("first"), sql.Literal(7)]
        connection.execute(
            sql.SQL("INSERT INTO {} VALUES ({})").format(sql.Identifier(table), sql.SQL(", ").join([*head, *values]))
        )


def tables(connection: psycopg.Connection[Any]) -> dict[str, Table]:
    """Return the tables as they are now, with their columns in order."""
    found = {}
    for name in TABLES:
        types = dict(_types(connection, name))
        columns = {column: column_type(*type_) for column, type_ in types.items()}
        found[name] = Table(columns, _key(connection, name), rows_of(connection, name, list(types)), types)
    return found


def _types(connection: psycopg.Connection[Any], table: str) -> Iterator[tuple[str, tuple[int, int]]]:
    found = connection.execute(
        "SELECT attname::text, atttypid::bigint, atttypmod FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        (f"public.{table}",),
    )
    for name, oid, modifier in found:
        yield name, (oid, modifier)


def _key(connection: psycopg.Connection[Any], table: str) -> list[str]:
    found = connection.execute(
        "SELECT attname::text FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)"
        " WHERE indrelid = %s::regclass AND indisprimary ORDER BY attnum",
        (f"public.{table}",),
    )
    return [name for (name,) in found]


def rows_of(connection: psycopg.Connection[Any], table: str, names: Sequence[str]) -> list[dict[str, str | None]]:
    """Return the rows of a table in the schema `public`, each column's text as its output function prints it."""
    # An array with a composite null and a composite of nulls are not null themselves.
    printed = sql.SQL(", ").join(
        sql.SQL("CASE WHEN num_nonnulls({0}) = 1 THEN format('%s', {0}) END").format(sql.Identifier(name))
        for name in names
    )
    found = connection.execute(sql.SQL("SELECT {} FROM {}").format(printed, sql.Identifier("public", table)))
    return [dict(zip(names, values, strict=True)) for values in found]
