"""A table with a column of every type, and tables keyed by one; each value in the topic is compared with the table's.

A value goes both ways, copied and streamed. The text is the server's own, as the type's output function prints it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import sql

from infra.postgres.connect import connect
from tests.producers.every_type import DOMAIN_TYPES, KEYED, OWN_TYPES, WITHOUT_VALUES, own_samples, samples
from tests.producers.folding import Record, text
from tests.producers.sources import Source, running, settings_for

STREAMED: Final = 1_000
"""Added to a row's id when it comes from the stream."""

_BUILT_IN: Final = """
SELECT typname::text FROM pg_type
WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND typcategory <> 'A' AND typisdefined
"""

_LIBXML: Final = "SELECT 1 FROM pg_config WHERE name = 'CONFIGURE' AND setting ~ 'with-libxml|libxml=enabled'"
"""Without it a server has the type xml, but accepts no value."""


@dataclass
class Comparison:
    """The number of comparisons: every value of every record, one at a time."""

    columns: int = 0
    keys: int = 0
    """Types that a column, or a key, has."""
    values: int = 0
    different: list[str] = field(default_factory=list)

    def note(self, what: str, value: object, expected: str | None, name: str) -> None:
        self.values += 1
        if not same(value, expected, name):
            self.different.append(f"{what} {name}: {str(value)[:60]!r}, not {(expected or 'null')[:60]!r}")


def compare_types(bootstrap_servers: str, prefix: str, dsn: str, *, keyed: Sequence[str] = KEYED) -> Comparison:
    """Copy and stream values of every type from the empty database of `dsn`, and compare them.

    `keyed` are the types that are tried as a key.
    """
    found = Comparison()
    with (
        psycopg.connect(dsn, autocommit=True) as application,
        connect(dsn, name="test", reading=True) as connection,
    ):
        application.execute((OWN_TYPES + DOMAIN_TYPES).encode())
        columns = columns_of(application)
        keys = {name: columns[name] for name in keyed if name in columns}
        listed = ", ".join(f"c{place} {name}" for place, name in enumerate(columns))
        application.execute(f"CREATE TABLE public.t (id int PRIMARY KEY, {listed})".encode())
        insert(application, columns, added=0)
        for place, (name, values) in enumerate(keys.items()):
            create_keyed(application, place, name, values)
        tables = ["public.t", *(f"public.k{place}" for place in range(len(keys)))]
        source = Source(settings_for(bootstrap_servers, prefix, dsn, *tables), connection)
        with running(source) as producer:
            producer.caught_up()
            insert(application, columns, added=STREAMED)
            for place in range(len(keys)):
                application.execute(f"UPDATE public.k{place} SET updated = true".encode())
            producer.caught_up()
        found.columns, found.keys = len(columns), len(keys)
        _compare_columns(found, source.records("public.t"), columns, rows_of(connection, columns))
        for place, name in enumerate(keys):
            _compare_keys(found, connection, source.records(f"public.k{place}"), place, name)
    return found


def create_keyed(connection: psycopg.Connection[Any], place: int, name: str, values: tuple[str, ...]) -> None:
    """Make a table whose key is of one type, with a row for each value that differs from all before it."""
    connection.execute(f"CREATE TABLE public.k{place} (k {name} PRIMARY KEY, n int, updated bool)".encode())
    row = sql.SQL("INSERT INTO {} VALUES ({}::{}, {}) ON CONFLICT DO NOTHING")
    for number, value in enumerate(values):
        connection.execute(row.format(sql.Identifier("public", f"k{place}"), value, sql.SQL(name), number))


def _compare_columns(
    found: Comparison,
    records: list[Record],
    columns: Mapping[str, tuple[str, ...]],
    shown: Mapping[int, list[str | None]],
) -> None:
    assert len(records) == len(shown) > 2
    # Both ways give the same values.
    assert {record.op for record in records} == {"r", "c"}
    for record in records:
        number = record.key["id"]
        assert isinstance(number, int)
        assert record.op == ("c" if number >= STREAMED - 1 else "r")
        assert record.event is not None
        assert record.event.after is not None
        for place, (name, expected) in enumerate(zip(columns, shown[number], strict=True)):
            found.note(record.op, record.event.after[f"c{place}"], expected, name)


def _compare_keys(
    found: Comparison, connection: psycopg.Connection[Any], records: list[Record], place: int, name: str
) -> None:
    shown = dict(connection.execute(f"SELECT n, format('%s', k) FROM public.k{place}".encode()).fetchall())
    for op in "ru":  # each row was copied once, and updated once
        rows = [record for record in records if record.op == op]
        assert len(rows) == len(shown) > 0, f"{name}: {len(rows)} records {op} of {len(shown)} rows"
        for record in rows:
            assert record.event is not None
            assert record.event.after is not None
            expected = shown[record.event.after["n"]]
            found.note(f"key of {op}", record.key["k"], expected, name)
            found.note(f"column of key of {op}", record.event.after["k"], expected, name)


def columns_of(connection: psycopg.Connection[Any]) -> dict[str, tuple[str, ...]]:
    """Return column type → values: every built-in type, an array of each, and types made here."""
    version = connection.info.server_version // 10_000
    known = samples(version)
    if not connection.execute(_LIBXML).fetchall():
        known["xml"] = ()
    built_in = {name for (name,) in connection.execute(_BUILT_IN).fetchall()}
    assert built_in - WITHOUT_VALUES.keys() - known.keys() == set(), "types without test values"
    columns: dict[str, tuple[str, ...]] = {}
    for name in sorted(built_in):
        quoted = f'"{name}"'
        columns[quoted] = known.get(name, ())
        if columns[quoted]:
            array = connection.execute(
                sql.SQL("SELECT format('%s', ARRAY[{}, NULL])").format(
                    sql.SQL(", ").join(sql.SQL("{}::{}").format(value, sql.SQL(quoted)) for value in known[name])
                )
            ).fetchone()
            assert array is not None
            columns[f"{quoted}[]"] = (array[0], "{}")
    return columns | own_samples(version)


def insert(connection: psycopg.Connection[Any], columns: Mapping[str, tuple[str, ...]], added: int) -> None:
    """Write one row of nulls, and one for each place in the longest list of values."""
    for place in range(-1, max(map(len, columns.values()))):
        values = [
            sql.SQL("{}::{}").format(sql.Literal(chosen[place]), sql.SQL(name))
            if 0 <= place < len(chosen)
            else sql.SQL("NULL")
            for name, chosen in columns.items()
        ]
        connection.execute(
            sql.SQL("INSERT INTO t VALUES ({}, {})").format(sql.Literal(place + added), sql.SQL(", ").join(values))
        )


def same(value: object, shown: str | None, name: str) -> bool:
    """Whether a decoded value is what the server shows."""
    match value:
        case bool():
            return shown == ("t" if value else "f")
        case float() if shown is not None:
            expected = float(shown)
            if name == '"float4"':
                (expected,) = struct.unpack("<f", struct.pack("<f", expected))
            if math.isnan(expected):
                return math.isnan(value)
            return value == expected and math.copysign(1, value) == math.copysign(1, expected)
        case datetime():
            # strftime writes the year 1 as 1.
            zone = "+00" if value.tzinfo else ""
            fraction = f".{value.microsecond:06}".rstrip("0") if value.microsecond else ""
            return f"{value.replace(microsecond=0, tzinfo=None)}{fraction}{zone}" == shown
        case _:
            return text(value) == shown


def rows_of(connection: psycopg.Connection[Any], columns: Mapping[str, tuple[str, ...]]) -> dict[int, list[str | None]]:
    """Return id → each column as its type's output function prints it, which a cast to text does not always use."""
    printed = ", ".join(
        f"CASE WHEN num_nonnulls(c{place}) = 1 THEN format('%s', c{place}) END" for place in range(len(columns))
    )
    return {number: values for number, *values in connection.execute(f"SELECT id, {printed} FROM public.t".encode())}
