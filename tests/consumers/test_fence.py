from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from consumers import fence
from consumers.fence import Paused, RunReplaced
from consumers.ledger import Ledger
from infra.control import ensure_control_schema
from schemas.errors import OwnershipMoved
from tests.conftest import Database

pytestmark = pytest.mark.stack


@pytest.fixture
def connection(database: Database) -> psycopg.Connection:
    opened = database.connect()
    ensure_control_schema(opened, "main", ["gitlab_main"])
    return opened


@pytest.fixture
def hold(connection: psycopg.Connection) -> Callable[..., None]:
    Ledger("m", "gitlab_main", "here:1").begin(connection)

    def hold(database: str = "main", run: int = 1) -> None:
        with connection.transaction(), connection.cursor() as cursor:
            fence.hold(cursor, migration="m", run=run, gitlab_schema="gitlab_main", database=database)

    return hold


def test_the_owner_may_write(hold: Callable[..., None]) -> None:
    hold()


@pytest.mark.parametrize(
    ("statement", "error", "message"),
    [
        ("UPDATE headrace.schema_ownership SET owner = 'ci'", OwnershipMoved, "owned by ci, not by main"),
        ("DELETE FROM headrace.schema_ownership", OwnershipMoved, "nobody owns gitlab_main"),
        ("UPDATE headrace.database SET name = 'ci'", OwnershipMoved, "call this database main, .* as ci"),
        ("DELETE FROM headrace.database", OwnershipMoved, "on record as None"),
        ("UPDATE headrace.migrations SET paused = true", Paused, "m is paused"),
        ("UPDATE headrace.migrations SET run = 2", RunReplaced, "run 1 of m was replaced by run 2"),
    ],
)
def test_who_may_not_write_is_told_why(
    hold: Callable[..., None],
    connection: psycopg.Connection,
    statement: str,
    error: type[Exception],
    message: str,
) -> None:
    connection.execute(statement)
    with pytest.raises(error, match=message):
        hold()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE headrace.schema_ownership SET owner = 'ci'",
        "UPDATE headrace.database SET name = 'ci'",
        "UPDATE headrace.migrations SET run = 2",
        "UPDATE headrace.migrations SET paused = true",
    ],
)
def test_a_change_of_owner_run_or_pause_waits_for_the_transaction_under_way(
    hold: Callable[..., None], connection: psycopg.Connection, database: Database, statement: str
) -> None:
    other = database.connect()
    other.execute("SET lock_timeout = '200ms'")
    with connection.transaction(), connection.cursor() as cursor:
        fence.hold(cursor, migration="m", run=1, gitlab_schema="gitlab_main", database="main")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute(statement)
    other.execute(statement)
