"""A table's rows in ranges of its key, and by their keys, whatever the key's type compares by."""

from __future__ import annotations

import pytest

from consumers.table_rows import TableRows
from infra.postgres import connect
from tests.conftest import Database

pytestmark = pytest.mark.stack


@pytest.mark.parametrize("schema", ["public", "extensions"])
@pytest.mark.parametrize("key", [["k"], ["k", "n"], ["n", "k"]])
def test_ranges_and_look_ups_by_a_key_with_operators_of_its_own(
    database: Database, schema: str, key: list[str]
) -> None:
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
        found, _ = rows.rows(every, lambda: None)
        assert found.keys() == set(every)
