"""The records of walks that several consumers apply."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from consumers.praefect import walk_ledger
from consumers.praefect.walk_ledger import End, Latest, Standing, Walk
from infra.postgres.control import ensure_control_schema
from tests.conftest import Database

pytestmark = pytest.mark.stack

FIRST, SECOND = Walk("default", "gitaly-0", 1), Walk("default", "gitaly-0", 2)


def end(walk: Walk, partition: int, *, complete: bool = True) -> End:
    return End(walk, partition, 2, 5, 0, complete, 1_000 * walk.walk_id)


def test_walk_is_the_sum_of_all_consumers(database: Database) -> None:
    connection = database.connect()
    cursor = connection.cursor()
    assert walk_ledger.walked(cursor) == set()
    ensure_control_schema(connection, "praefect", ["praefect"], walk_ledger.TABLES)
    assert walk_ledger.standing(cursor, 1, FIRST) == Standing(0, 0, 0, 0, False, 0)

    # Each consumer has its own connection; other runs and walks do not count.
    walk_ledger.count(cursor, 1, {FIRST: 2, SECOND: 1})
    walk_ledger.count(other(database), 1, {FIRST: 3})
    walk_ledger.count(cursor, 2, {FIRST: 5})
    walk_ledger.reach(cursor, 1, end(FIRST, 0))
    walk_ledger.reach(cursor, 1, end(FIRST, 0))
    standing = walk_ledger.standing(cursor, 1, FIRST)
    assert (standing, standing.ended) == (Standing(1, 2, 5, 0, True, 5), False)
    walk_ledger.reach(cursor, 1, end(FIRST, 1, complete=False))
    standing = walk_ledger.standing(cursor, 1, FIRST)
    assert (standing, standing.ended) == (Standing(2, 2, 5, 0, False, 5), True)

    assert walk_ledger.walked(cursor) == {"default"}
    assert walk_ledger.latest(cursor) == {("default", "gitaly-0"): Latest(1, 1_000)}
    walk_ledger.reach(cursor, 1, end(SECOND, 1))
    assert walk_ledger.latest(cursor) == {("default", "gitaly-0"): Latest(2, 2_000)}
    assert walk_ledger.last(cursor) == [(SECOND, 1, datetime.fromtimestamp(2, UTC))]

    walk_ledger.forget_before(cursor, SECOND)
    assert walk_ledger.standing(cursor, 1, FIRST) == Standing(0, 0, 0, 0, False, 0)
    assert walk_ledger.standing(cursor, 1, SECOND) == Standing(1, 2, 5, 0, True, 1)


def other(database: Database) -> psycopg.Cursor[Any]:
    return database.connect().cursor()
