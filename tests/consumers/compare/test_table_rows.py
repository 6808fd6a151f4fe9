"""Reads a table's rows by key range and by key, with the comparison operators of the key's type."""

from __future__ import annotations

import pytest

from consumers.compare import marks
from consumers.compare.table_rows import KeyRange, TableRows
from infra.postgres.connect import connect
from schemas.wire import HEADER_BYTES
from tests.conftest import Database

pytestmark = pytest.mark.stack
SECRET = bytes(16)


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
        found = list(rows.ranges(7))
        assert {each.lines.rows for each in found[:-1]} == {7}
        assert [each.upto is None for each in found] == [False] * (len(found) - 1) + [True]
        assert list(rows.ranges(7, found[9].upto)) == found[10:]
        (between,) = rows.keys_between(found[9].upto, found[10].upto)
        assert hashes(between) == hashes_of(rows, found[10])
        (all_keys,) = rows.keys_between(None, None)
        assert hashes(all_keys) == [each for range_ in found for each in hashes_of(rows, range_)]
        every = [key[HEADER_BYTES:] for key in all_keys]
        assert len(every) == len(set(every)) == 500
        rows_of, looked, _ = rows.rows(every, lambda: None)
        assert rows_of.keys() == set(every)
        assert looked == 500
        assert rows.estimated_rows() == 0
        connection.execute("ANALYZE public.things")
        assert rows.estimated_rows() == 500


def test_ranges_of_wide_rows_are_limited_by_bytes(database: Database) -> None:
    database.connect().execute(
        "CREATE TABLE public.wide (id int PRIMARY KEY, v text);"
        " INSERT INTO public.wide SELECT i, repeat('x', 300000) FROM generate_series(1, 40) i"
    )
    with connect(database.dsn, name="test", reading=True) as connection:
        rows = TableRows(connection, "public.wide", "gitlab_main", ["id"], range_bytes=2 << 20)
        ranges = list(rows.ranges(50_000))
        assert max(each.lines.rows for each in ranges) <= 10, "a reading more than the bound"
        parts = list(rows.keys_between(None, None))
        assert len(parts) > 3
        all_keys = [key for part in parts for key in part]
        assert hashes(all_keys) == [each for range_ in ranges for each in hashes_of(rows, range_)]
        every = [key[HEADER_BYTES:] for key in all_keys]
        assert len(every) == len(set(every)) == 40
        seen: set[bytes] = set()
        while every:
            found, looked, _ = rows.rows(every, lambda: None)
            assert found.keys() == set(every[:looked])
            assert looked <= 15
            seen |= found.keys()
            every = every[looked:]
        assert len(seen) == 40


@pytest.mark.parametrize("count", [0, 13, 14, 15])
def test_last_range_has_no_end_whether_it_has_rows_or_not(database: Database, count: int) -> None:
    database.connect().execute(
        f"CREATE TABLE public.few (id int PRIMARY KEY); INSERT INTO public.few SELECT generate_series(1, {count})"
    )
    with connect(database.dsn, name="test", reading=True) as connection:
        found = [
            (each.lines.rows, each.upto)
            for each in TableRows(connection, "public.few", "gitlab_main", ["id"]).ranges(7)
        ]
    full = [(7, (str(last),)) for last in range(7, count + 1, 7)]
    assert found == [*full, (count % 7, None)]


def hashes(keys: list[bytes]) -> list[int]:
    made = marks.table_marks(keys, [b""] * len(keys), 0, SECRET)
    return [key for key, _, _ in marks.MARK.iter_unpack(made)]


def hashes_of(rows: TableRows, range_: KeyRange) -> list[int]:
    return [key for key, _, _ in marks.MARK.iter_unpack(rows.marks(range_.lines, 0, SECRET))]


def test_rows_of_a_partitioned_table_are_estimated_once(database: Database) -> None:
    database.connect().execute(
        "CREATE TABLE public.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        " CREATE TABLE public.low PARTITION OF public.parts FOR VALUES FROM (0) TO (100);"
        " CREATE TABLE public.high PARTITION OF public.parts FOR VALUES FROM (100) TO (1000);"
        " INSERT INTO public.parts SELECT generate_series(0, 499); ANALYZE public.parts"
    )
    with connect(database.dsn, name="test", reading=True) as connection:
        assert TableRows(connection, "public.parts", "gitlab_main", ["id"]).estimated_rows() == 500
