"""What the catalog says of captured tables now."""

from __future__ import annotations

import pytest

from producers.table_catalog import tables_now
from tests.conftest import Database

pytestmark = pytest.mark.stack


def test_a_column_that_was_never_checked_for_nulls_makes_no_key(database: Database) -> None:
    connection = database.connect()
    connection.execute("CREATE TABLE t (id int PRIMARY KEY, name text UNIQUE); INSERT INTO t VALUES (1, NULL)")
    connection.execute("ALTER TABLE t ADD CONSTRAINT named NOT NULL name NOT VALID")
    oid, *_ = connection.execute("SELECT 't'::regclass::oid::bigint").fetchone() or (0,)
    assert tables_now(connection, None, [oid])[oid].unique == {frozenset({"id"})}
    connection.execute("UPDATE t SET name = 'a'; ALTER TABLE t VALIDATE CONSTRAINT named")
    assert tables_now(connection, None, [oid])[oid].unique == {frozenset({"id"}), frozenset({"name"})}
