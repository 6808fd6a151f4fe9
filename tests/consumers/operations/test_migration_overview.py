"""The metrics that a consumer exports about its migration, from fakes of the ledger and of the count."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from prometheus_client import REGISTRY

from consumers.contract import counting
from consumers.contract.counting import Count
from consumers.ledger.progress import Place
from consumers.ledger.recorded import Recorded
from consumers.operations import migration_overview
from consumers.operations.migration_overview import MigrationOverview
from consumers.operations.overview.status_models import STATES
from tests.consumers.model.topic import MIGRATION

ONE, TWO = Place("t", 0), Place("t", 1)


class Database:
    """The database: its records, and its count, which may fail."""

    closed = False

    def __init__(self) -> None:
        self.now = 100.0
        self.counts = 0
        self.remaining: Count | Exception = Count(9)
        self.found = Recorded()
        self.found.offsets = {ONE: 10, TWO: 20}
        self.found.consumers = {ONE: "a:1", TWO: "b:2"}
        self.found.dead_letters = 3

    def count(self, *_: object, **__: object) -> Count:
        self.counts += 1
        if isinstance(self.remaining, Exception):
            raise self.remaining
        return self.remaining


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Database:
    made = Database()
    monkeypatch.setattr(migration_overview, "recorded", lambda *_: made.found)
    monkeypatch.setattr(counting, "count", made.count)
    return made


@pytest.fixture
def overview(database: Database) -> MigrationOverview:
    return MigrationOverview(MIGRATION, lambda: database.now)


def export(overview: MigrationOverview, database: Any, lag: dict[Place, int]) -> None:
    overview.export(database, lag)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"headrace_{name}", {"migration": MIGRATION.name, **labels})


def test_ledger_is_exported(database: Database, overview: MigrationOverview) -> None:
    export(overview, database, {ONE: 5, TWO: 0})
    assert value("migration_consumers") == 2
    assert value("migration_dead_letters_waiting") == 3
    assert (value("migration_remaining_rows"), value("migration_remaining_estimated")) == (9, 0)
    assert {
        state: value("migration_state", state=state) for state in STATES if value("migration_state", state=state)
    } == {"running": 1}
    database.found.paused = True
    export(overview, database, {ONE: 5, TWO: 0})
    assert (value("migration_state", state="running"), value("migration_state", state="paused")) == (0, 1)


def test_lag_of_a_partition_that_another_consumer_has_is_no_longer_exported(
    database: Database, overview: MigrationOverview
) -> None:
    export(overview, database, {ONE: 5, TWO: 7})
    assert value("consumer_lag_events", topic="t", partition="1") == 7
    export(overview, database, {ONE: 4})
    assert value("consumer_lag_events", topic="t", partition="0") == 4
    assert value("consumer_lag_events", topic="t", partition="1") is None


def test_time_left_is_by_the_rate_since_the_last_look(database: Database, overview: MigrationOverview) -> None:
    export(overview, database, {ONE: 90, TWO: 0})
    assert value("consumer_eta_seconds") == float("inf")
    database.now += 5
    database.found.offsets = {ONE: 40, TWO: 20}
    export(overview, database, {ONE: 60, TWO: 0})
    assert value("consumer_eta_seconds") == 10
    database.now += 5
    export(overview, database, {ONE: 60, TWO: 0})
    assert value("consumer_eta_seconds") == float("inf")
    export(overview, database, {ONE: 0, TWO: 0})
    assert value("consumer_eta_seconds") == 0


def test_rows_are_counted_once_a_minute(database: Database, overview: MigrationOverview) -> None:
    for _ in range(5):
        export(overview, database, {})
        database.now += 13
    assert database.counts == 1
    export(overview, database, {})
    assert database.counts == 2


def test_count_that_fails_ends_nothing_and_keeps_the_last_value(
    database: Database, overview: MigrationOverview
) -> None:
    export(overview, database, {})
    database.now += 60
    database.remaining = psycopg.errors.UndefinedTable("no table")
    export(overview, database, {})
    assert value("migration_remaining_rows") == 9
    database.now += 60
    database.remaining = Count(1_000, estimated=True)
    export(overview, database, {})
    assert (value("migration_remaining_rows"), value("migration_remaining_estimated")) == (1_000, 1)


def test_lost_connection_is_the_callers_to_handle(database: Database, overview: MigrationOverview) -> None:
    database.remaining = psycopg.OperationalError("gone")
    database.closed = True
    with pytest.raises(psycopg.OperationalError):
        export(overview, database, {})
