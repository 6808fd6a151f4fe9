"""The witness reports where each transaction committed and how the ledger moved."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from infra.stack import EmbeddedStack
from tests.chaos import witness
from tests.chaos.witness import Move

pytestmark = pytest.mark.stack

TABLES = """
    CREATE SCHEMA history;
    CREATE TABLE history.marks (name text);
    CREATE SCHEMA headrace;
    CREATE TABLE headrace.progress (
        migration text, run int, topic text, partition int, next_offset bigint NOT NULL, note text,
        PRIMARY KEY (migration, run, topic, partition)
    );
"""


@pytest.fixture
def connection(stack: EmbeddedStack) -> Iterator[psycopg.Connection]:
    dsn = stack.postgres.create_database("witnessed")
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(TABLES.encode())
            witness.begin(connection)
            witness.follow_ledger(connection)
            yield connection
    finally:
        stack.postgres.drop_database("witnessed")


def xid_of(connection: psycopg.Connection, *statements: str) -> int:
    with connection.transaction():
        for statement in statements:
            connection.execute(statement.encode())
        row = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
    assert row is not None
    return int(row[0])


def test_witness_reports_commits_and_moves_in_commit_order(connection: psycopg.Connection) -> None:
    made = xid_of(connection, "INSERT INTO headrace.progress VALUES ('m', 1, 't', 3, 0, NULL)")
    moved = xid_of(connection, "UPDATE headrace.progress SET next_offset = 20, note = 'an ümlaut'")
    # Not a ledger move: one transaction writes something else, one changes the key.
    xid_of(connection, "UPDATE headrace.progress SET note = 'no move'")
    marked = xid_of(connection, "INSERT INTO history.marks VALUES ('here')")
    xid_of(connection, "UPDATE headrace.progress SET run = 2, next_offset = 30")
    found = witness.read(connection)
    assert found.moves["m"][:2] == [Move(made, 3, None, 0), Move(moved, 3, 0, 20)]
    assert [(move.old, move.new, move.run) for move in found.moves["m"][2:]] == [(20, 30, 2)]
    assert found.commits[made] < found.commits[moved] < found.commits[marked]


def test_witness_does_not_report_rolled_back_transactions(connection: psycopg.Connection) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute("INSERT INTO history.marks VALUES ('never')")
        row = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
    assert row is not None
    assert int(row[0]) not in witness.read(connection).commits
