"""Reads a table's rows by key range and by key, with the comparison operators of the key's type."""

from __future__ import annotations

import pytest

from consumers.compare.table_rows import TableRows
from infra.postgres.connect import connect
from tests.conftest import Database

pytestmark = pytest.mark.stack


@pytest.mark.parametrize("schema", ["public", "extensions"])
@pytest.mark.parametrize("key", [["k"], ["k", "n"], ["n", "k"]])
def test_ranges_and_lookups_use_the_operators_of_the_keys_type(database: Database, schema: str, key: list[str]) -> None:
    database.connect().execute(
        f"CREATE SCHEMA IF NOT EXISTS {schema}; CREATE EXTENSION citext SCHEMA {schema};"
        f' CREATE TABLE public.things (k {schema}.citext COLLATE "C", n int, PRIMARY KEY ({", ".join(key)}));'
        " INSERT INTO public.things SELECT chr((CASE WHEN i % 2 = 0 THEN 65 ELSE 97 END) + i % 26) || i, i % 500"
        " FROM generate_series(1, 500) i"
    )
    with connect(database.dsn, name="test", reading=True) as connection:
        rows = TableRows(connection, "public.things", "gitlab_main", key)
        ranges = [keys for keys, _ in rows.ranges(7)]
        assert {len(keys) for keys in ranges[:-1]} == {7}
        every = [each for keys in ranges for each in keys]
        assert len(every) == len(set(every)) == 500
        found, looked, _ = rows.rows(every, lambda: None)
        assert found.keys() == set(every)
        assert looked == 500


def test_ranges_of_wide_rows_are_limited_by_bytes(database: Database) -> None:
    database.connect().execute(
        "CREATE TABLE public.wide (id int PRIMARY KEY, v text);"
        " INSERT INTO public.wide SELECT i, repeat('x', 300000) FROM generate_series(1, 40) i"
    )
    with connect(database.dsn, name="test", reading=True) as connection:
        rows = TableRows(connection, "public.wide", "gitlab_main", ["id"], range_bytes=2 << 20)
        ranges = [keys for keys, _ in rows.ranges(50_000)]
        assert max(map(len, ranges)) <= 10, "a reading more than the bound"
        every = [each for keys in ranges for each in keys]
        assert len(every) == len(set(every)) == 40
        seen: set[bytes] = set()
        while every:
            found, looked, _ = rows.rows(every, lambda: None)
            assert found.keys() == set(every[:looked])
            assert looked <= 15
            seen |= found.keys()
            every = every[looked:]
        assert len(seen) == 40
