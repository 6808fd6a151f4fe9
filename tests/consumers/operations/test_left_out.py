"""`headrace check` reports the columns of a migration whose values the stream may leave out."""

from __future__ import annotations

import pytest

from consumers.operations.left_out import advise_of_left_out
from tests.conftest import Database

pytestmark = pytest.mark.stack

LARGE = "(SELECT string_agg(md5(j::text), '') FROM generate_series(1, 500) j)"
PLAIN = "CREATE TABLE t (id int PRIMARY KEY, v text, w text);"
ROOT = (
    "CREATE TABLE t (id int PRIMARY KEY, v text, w text) PARTITION BY RANGE (id);"
    "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (9);"
)


@pytest.mark.parametrize("made", [PLAIN, ROOT])
def test_table_with_large_values_is_reported_with_columns(database: Database, made: str) -> None:
    connection = database.connect()

    def said(*columns: str) -> list[str]:
        return [str(each) for each in advise_of_left_out(connection, "migrations.m", "public.t", columns)]

    connection.execute(f"{made} INSERT INTO t VALUES (1, 'small', 'small')".encode())
    assert said("id", "v", "w") == []
    connection.execute(f"UPDATE t SET v = {LARGE}".encode())
    assert said("id") == []
    (advice,) = said("id", "v")
    assert "migrations.m: table public.t has large values" in advice
    assert "(v)" in advice
    assert "ALTER TABLE public.t REPLICA IDENTITY FULL" in advice
    for leaf in ("t",) if made is PLAIN else ("t", "t_1"):
        connection.execute(f"ALTER TABLE {leaf} REPLICA IDENTITY FULL".encode())
    assert said("id", "v", "w") == []
