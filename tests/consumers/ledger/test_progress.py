from __future__ import annotations

import psycopg
import pytest

from consumers.ledger.progress import Advance, Ledger, LedgerMoved, Place
from infra.postgres.control import ensure_control_schema
from schemas.positions import Offset
from tests.conftest import Database

pytestmark = pytest.mark.stack

FIRST, SECOND = Place("t", 0), Place("t", 1)
TOPIC_IDS = {FIRST: "a", SECOND: "a"}


@pytest.fixture
def connection(database: Database) -> psycopg.Connection:
    opened = database.connect()
    ensure_control_schema(opened, "main", ["gitlab_main"])
    return opened


@pytest.fixture
def ledger() -> Ledger:
    return Ledger("m", "gitlab_main", "here:1")


def advance(connection: psycopg.Connection, ledger: Ledger, run: int, *moves: Advance, applied: int = 0) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        ledger.advance(cursor, run, moves, applied)


def counts(connection: psycopg.Connection) -> dict[int, tuple[object, ...]]:
    found = connection.execute("SELECT partition, next_offset, applied, skipped, dead_letters FROM headrace.progress")
    return {row[0]: row[1:] for row in found}


def test_run_starts_once_and_partitions_start_at_zero(connection: psycopg.Connection, ledger: Ledger) -> None:
    assert [ledger.begin(connection), ledger.begin(connection)] == [1, 1]
    for _ in range(2):
        entries = ledger.open(connection, 1, TOPIC_IDS)
        assert {place: (entry.next_offset, entry.topic_id) for place, entry in entries.items()} == {
            FIRST: (0, "a"),
            SECOND: (0, "a"),
        }


def test_partition_added_later_starts_at_zero(connection: psycopg.Connection, ledger: Ledger) -> None:
    ledger.begin(connection)
    ledger.open(connection, 1, {FIRST: "a"})
    advance(connection, ledger, 1, Advance(FIRST, Offset(0), Offset(5), skipped={"x": 5}))
    entries = ledger.open(connection, 1, TOPIC_IDS)
    assert [entries[place].next_offset for place in (FIRST, SECOND)] == [5, 0]


def test_ledger_adds_counts_and_skip_reasons(connection: psycopg.Connection, ledger: Ledger) -> None:
    ledger.begin(connection)
    ledger.open(connection, 1, TOPIC_IDS)
    moves = (
        Advance(FIRST, Offset(0), Offset(9), changes=4, skipped={"x": 4, "y": 1}),
        Advance(SECOND, Offset(0), Offset(3), changes=1, dead_letters=1, skipped={"x": 1}),
    )
    advance(connection, ledger, 1, *moves, applied=3)
    advance(connection, ledger, 1, Advance(FIRST, Offset(9), Offset(11), skipped={"x": 2}))
    assert counts(connection) == {0: (11, 3, 8, 0), 1: (3, 0, 2, 1)}
    reasons: dict[int, object] = dict(
        connection.execute("SELECT partition, skip_reasons FROM headrace.progress").fetchall()
    )
    assert reasons == {0: {"x": 6, "y": 1, "already up to date": 1}, 1: {"x": 1, "already up to date": 1}}


def test_advance_with_unexpected_offset_writes_nothing(connection: psycopg.Connection, ledger: Ledger) -> None:
    ledger.begin(connection)
    ledger.open(connection, 1, TOPIC_IDS)
    connection.execute("CREATE TABLE effects (id int)")
    advance(connection, ledger, 1, Advance(SECOND, Offset(0), Offset(3)))
    moves = [Advance(FIRST, Offset(0), Offset(2)), Advance(SECOND, Offset(0), Offset(3))]

    def zombie() -> None:
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute("INSERT INTO effects VALUES (1)")
            ledger.advance(cursor, 1, moves, 1)

    with pytest.raises(LedgerMoved, match="t/1@0"):
        zombie()
    assert counts(connection) == {0: (0, 0, 0, 0), 1: (3, 0, 0, 0)}
    assert connection.execute("SELECT count(*) FROM effects").fetchone() == (0,)
