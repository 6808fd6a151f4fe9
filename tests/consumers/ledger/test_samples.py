"""Samples of a run's progress: one a minute for all consumers, in the transaction of the ledger, thinned with age."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from consumers.ledger import samples
from consumers.ledger.progress import Advance, Ledger, Place
from consumers.ledger.recorded import read_records
from consumers.ledger.samples import Samples
from infra.postgres.control import ensure_control_schema
from schemas.positions import Offset
from tests.conftest import Database

pytestmark = pytest.mark.stack

PLACE = Place("t", 0)
Connection = psycopg.Connection[Any]


@pytest.fixture
def connection(database: Database) -> Connection:
    """A connection to a database with a run that has passed nothing."""
    opened = database.connect()
    ensure_control_schema(opened, "main", ["gitlab_main"])
    ledger = Ledger("m", "gitlab_main", "here:1")
    ledger.open(opened, ledger.begin(opened), {PLACE: "id"})
    return opened


def advance(connection: Connection, by: Samples, *, rolled_back: bool = False) -> None:
    """Advance the ledger by ten events, and take a sample if one is due."""
    ledger = Ledger("m", "gitlab_main", "here:1")
    expected = ledger.read(connection, 1)[PLACE].next_offset
    with connection.transaction(force_rollback=rolled_back), connection.cursor() as cursor:
        counted = Advance(PLACE, expected, Offset(expected + 10), changes=7, skipped={"x": 2}, dead_letters=1, rate=5.0)
        ledger.advance(cursor, 1, [counted], 7)
        by.take(cursor, 1)


def taken(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT events, applied, skipped, dead_letters, rate FROM headrace.samples WHERE migration = 'm' ORDER BY at"
    ).fetchall()


def a_minute_later(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    connection.execute("UPDATE headrace.samples SET at = at - interval '1 minute'")
    monkeypatch.setattr(samples, "SECONDS", 0.0)


def test_sample_has_the_runs_sums_and_is_taken_once_a_minute(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Samples("m"), Samples("m")
    for consumer in (one, other, one, other):
        advance(connection, consumer)
    assert taken(connection) == [(10, 7, 2, 1, 5.0)]
    a_minute_later(connection, monkeypatch)
    late = Samples("m")
    advance(connection, late)
    advance(connection, late)
    assert taken(connection) == [(10, 7, 2, 1, 5.0), (50, 35, 10, 5, 5.0)]


def test_sample_shares_the_fate_of_its_transaction(connection: Connection) -> None:
    advance(connection, Samples("m"), rolled_back=True)
    assert taken(connection) == []


def test_no_transaction_waits_for_anothers_sample(database: Database, connection: Connection) -> None:
    other = database.connect()
    other.execute("SET lock_timeout = '1s'")
    with connection.transaction(), connection.cursor() as cursor:
        Samples("m").take(cursor, 1)
        with other.transaction(), other.cursor() as second:
            Samples("m").take(second, 1)
    assert len(taken(connection)) == 1


def test_old_samples_are_thinned_to_one_an_hour_and_deleted(connection: Connection) -> None:
    connection.execute(
        "INSERT INTO headrace.samples"
        " SELECT name, 1, date_trunc('hour', now()) - age + minute * interval '1 minute', 0, 0, 0, 0, 0"
        " FROM unnest(ARRAY['m', 'other']) AS name,"
        " unnest(ARRAY[interval '400 days 2 hours', '8 days', '1 day']) AS age,"
        " generate_series(0, 59) AS minute"
    )
    advance(connection, Samples("m"))
    counted = connection.execute(
        "SELECT migration, at < now() - interval '7 days', count(*),"
        " bool_and(at = date_trunc('hour', at)) FROM headrace.samples"
        " WHERE at < now() - interval '12 hours' GROUP BY 1, 2 ORDER BY 1, 2"
    ).fetchall()
    assert counted == [
        ("m", False, 60, False),
        ("m", True, 1, True),
        ("other", False, 60, False),
        ("other", True, 120, False),
    ]


def test_throttled_periods_are_limited_by_age_and_number(connection: Connection) -> None:
    connection.execute(
        "INSERT INTO headrace.throttle_periods"
        " SELECT name, 'here:1', 'r', now() - (n || ' minutes')::interval, now() - (n || ' minutes')::interval"
        " FROM unnest(ARRAY['m', 'other']) AS name, generate_series(1, 10002) AS n"
    )
    connection.execute(
        "UPDATE headrace.throttle_periods SET until = until - interval '400 days'"
        " WHERE since > now() - interval '5 minutes'"
    )
    advance(connection, Samples("m"))
    counted = connection.execute(
        "SELECT migration, count(*), min(until) > now() - interval '400 days' FROM headrace.throttle_periods"
        " GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert counted == [("m", 9_998, True), ("other", 10_002, False)]


def test_rate_of_a_consumer_counts_once_however_many_partitions_it_has(connection: Connection) -> None:
    places = [Place("t", number) for number in range(5)]
    for member, own, rate in (("here:1", places[:4], 100.0), ("there:2", places[4:], 20.0)):
        ledger = Ledger("m", "gitlab_main", member)
        ledger.open(connection, 1, dict.fromkeys(own, "id"))
        for place in own:
            with connection.transaction(), connection.cursor() as cursor:
                ledger.advance(cursor, 1, [Advance(place, Offset(0), Offset(10), changes=10, rate=rate)], 10)
    with connection.transaction(), connection.cursor() as cursor:
        Samples("m").take(cursor, 1)
    assert taken(connection) == [(50, 50, 0, 0, 120.0)]
    records = read_records(connection, "main")
    assert records is not None
    assert records.migrations["m"].rate == 120.0
