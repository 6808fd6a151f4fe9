"""A value of every type is in the topic what it is in the table, copied or streamed, on every PostgreSQL there is."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg import sql

from infra.postgres import connect
from tests.conftest import Database
from tests.producers.every_type import OWN_SAMPLES, OWN_TYPES, WITHOUT_VALUES, samples
from tests.producers.folding import Record, text
from tests.producers.installed_postgres import installed_postgres, installed_versions
from tests.producers.sources import Source, running, settings_for

pytestmark = pytest.mark.stack

STREAMED = 1_000
"""What is added to a row's id when it comes by the stream."""

_BUILT_IN = """
SELECT typname::text FROM pg_type
WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND typcategory <> 'A' AND typisdefined
"""

_LIBXML = "SELECT 1 FROM pg_config WHERE name = 'CONFIGURE' AND setting ~ 'with-libxml|libxml=enabled'"
"""Without it a server has the type xml, and takes no value."""


@pytest.fixture(params=["the stack's", "the system's"])
def dsn(request: pytest.FixtureRequest, database: Database) -> Iterator[str]:
    if request.param == "the stack's":
        yield database.dsn
        return
    versions = installed_versions()
    if not versions:
        pytest.skip("no PostgreSQL package is installed")
    with installed_postgres(versions[max(versions)]) as server:
        yield server.create_database("types")


def columns_of(connection: psycopg.Connection[Any]) -> dict[str, tuple[str, ...]]:
    """Return column type → values: every built-in type, an array of each, and types made here."""
    known = samples(connection.info.server_version // 10_000)
    if not connection.execute(_LIBXML).fetchall():
        known["xml"] = ()
    built_in = {name for (name,) in connection.execute(_BUILT_IN).fetchall()}
    assert built_in - WITHOUT_VALUES.keys() - known.keys() == set(), "types that nobody thought of"
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
    return columns | OWN_SAMPLES


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


def test_every_type_and_value(dsn: str, bootstrap_servers: str, prefix: str) -> None:
    source = Source(
        settings_for(bootstrap_servers, prefix, dsn, "public.t"),
        connect(dsn, name="test", reading=True),
    )
    connection = source.connection
    application = psycopg.connect(dsn, autocommit=True)
    try:
        application.execute(OWN_TYPES.encode())
        columns = columns_of(application)
        listed = ", ".join(f"c{place} {name}" for place, name in enumerate(columns))
        application.execute(f"CREATE TABLE public.t (id int PRIMARY KEY, {listed})".encode())
        insert(application, columns, added=0)
        with running(source) as producer:
            producer.caught_up()
            insert(application, columns, added=STREAMED)
            producer.caught_up()
        records = source.records("public.t")
        shown = rows_of(connection, columns)
    finally:
        application.close()
        connection.close()
    assert len(records) == len(shown) > 2
    wrong = [each for record in records for each in differences(record, columns, shown)]
    assert wrong == []
    # Both ways lead to the same, value for value.
    assert {record.op for record in records} == {"r", "c"}


def rows_of(connection: psycopg.Connection[Any], columns: Mapping[str, tuple[str, ...]]) -> dict[int, list[str | None]]:
    """Return id → each column as its type's output function prints it, which a cast to text does not always use."""
    printed = ", ".join(
        f"CASE WHEN num_nonnulls(c{place}) = 1 THEN format('%s', c{place}) END" for place in range(len(columns))
    )
    return {number: values for number, *values in connection.execute(f"SELECT id, {printed} FROM public.t".encode())}


def differences(
    record: Record, columns: Mapping[str, tuple[str, ...]], shown: Mapping[int, list[str | None]]
) -> Iterator[str]:
    number = record.key["id"]
    assert isinstance(number, int)
    assert record.op == ("c" if number >= STREAMED - 1 else "r")
    assert record.event is not None
    assert record.event.after is not None
    for place, (name, expected) in enumerate(zip(columns, shown[number], strict=True)):
        value = record.event.after[f"c{place}"]
        if not same(value, expected, name):
            yield f"{record.op} {name}: {str(value)[:60]!r}, not {(expected or 'null')[:60]!r}"
