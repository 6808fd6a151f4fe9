"""The connection of a migration reconnects when lost, and gives up when stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from consumers.ledger.target import LOCK_TIMEOUT, Target, backoff
from consumers.testing.waiting import until
from schemas.errors import HeadraceError, Interrupted, SettingsError
from tests.conftest import Database

pytestmark = pytest.mark.stack


@pytest.fixture
def stopping() -> threading.Event:
    return threading.Event()


@pytest.fixture
def waits() -> list[float]:
    """The requested waits, in order."""
    return []


@pytest.fixture
def target(database: Database, stopping: threading.Event, waits: list[float]) -> Iterator[Target]:
    made = Target(database.dsn, database="main", migration="m", stopping=stopping, wait=waits.append)
    yield made
    made.close()


def answer(connection: psycopg.Connection[Any]) -> object:
    row = connection.execute("SELECT 42").fetchone()
    return row[0] if row else None


def test_backoff_doubles_from_a_tenth_to_fifteen_seconds() -> None:
    for attempt, longest in ((1, 0.1), (2, 0.2), (5, 1.6), (9, 15.0), (1_000, 15.0)):
        assert longest * 0.75 - 0.0005 <= backoff(attempt) <= longest, "to the millisecond"


def test_lost_connection_is_reopened_and_query_repeated(target: Target, database: Database, waits: list[float]) -> None:
    first = target.connection
    database.connect().execute("SELECT pg_terminate_backend(%s)", (first.info.backend_pid,))
    assert target.ask(answer) == 42
    assert target.connection is not first
    assert len(waits) == 1


@pytest.mark.parametrize(("statements", "locks"), [("0", "5s"), ("1min", "5s"), ("2s", "1s")])
def test_lock_timeout_is_below_statement_timeout(
    statements: str, locks: str, target: Target, database: Database
) -> None:
    """A lock timeout has another SQLSTATE than a statement timeout."""
    database.connect().execute(f"ALTER DATABASE {database.name} SET statement_timeout = '{statements}'")
    assert target.connection.execute("SHOW lock_timeout").fetchone() == (locks,)


def test_lock_timeout_is_never_disabled_by_tiny_statement_timeout(
    database: Database,
) -> None:
    """A lock_timeout of 0 would disable it. Simulated, since no statement reliably finishes in 1 ms."""
    connection = database.connect()
    settings = "(VALUES ('statement_timeout', '1')) AS settings (name, setting)"
    connection.execute(LOCK_TIMEOUT.replace("pg_settings", settings).encode())
    assert connection.execute("SHOW lock_timeout").fetchone() == ("1ms",)


def test_transient_error_is_retried_over_the_same_connection(target: Target, waits: list[float]) -> None:
    failures = [psycopg.errors.DeadlockDetected("a deadlock"), psycopg.errors.SerializationFailure("late")]

    def question(connection: psycopg.Connection[Any]) -> object:
        if failures:
            raise failures.pop()
        return answer(connection)

    before = target.connection
    assert target.ask(question) == 42
    assert target.connection is before
    assert len(waits) == 2


def test_permanent_error_is_one_line_without_values(target: Target, waits: list[float]) -> None:
    with pytest.raises(
        HeadraceError, match=r"^database main: .*42P01 .*relation \"nothing\" does.*; compare"
    ) as raised:
        target.ask(lambda connection: connection.execute("SELECT 'secret' FROM nothing"))
    assert "secret" not in str(raised.value)
    assert waits == []


def test_name_in_statement_that_function_composed_is_not_shown(target: Target) -> None:
    composed = "DO $$ BEGIN EXECUTE 'SELECT ' || 'secret'; END $$"
    with pytest.raises(HeadraceError, match="42703 UndefinedColumn; compare") as raised:
        target.ask(lambda connection: connection.execute(composed))
    assert "secret" not in str(raised.value)


def test_invalid_dsn_is_reported_immediately(database: Database, stopping: threading.Event) -> None:
    wrong = Target(
        database.dsn.replace(database.name, "absent"),
        database="main",
        migration="m",
        stopping=stopping,
        wait=lambda _: None,
    )
    with pytest.raises(SettingsError, match="does not exist on that server"):
        wrong.ask(answer)


def test_stopping_ends_the_wait_for_a_server(stopping: threading.Event, closed_port: int) -> None:
    def stop(_seconds: float) -> None:
        stopping.set()

    gone = Target(
        f"postgresql://127.0.0.1:{closed_port}/x", database="main", migration="m", stopping=stopping, wait=stop
    )
    with pytest.raises(Interrupted):
        gone.ask(answer)


def test_running_statement_is_cancelled_from_another_thread(
    target: Target, database: Database, stopping: threading.Event
) -> None:
    pid = target.connection.info.backend_pid
    watcher = database.connect()

    def cancel_when_it_runs() -> None:
        query = "SELECT state, query FROM pg_stat_activity WHERE pid = %s"
        until(lambda: watcher.execute(query, (pid,)).fetchone() == ("active", "SELECT pg_sleep(600)"), "it runs")
        stopping.set()
        target.cancel()

    cancelling = threading.Thread(target=cancel_when_it_runs)
    cancelling.start()
    with pytest.raises(Interrupted):
        target.ask(lambda connection: connection.execute("SELECT pg_sleep(600)"))
    cancelling.join()


def test_last_write_needs_an_open_connection(target: Target) -> None:
    said: list[object] = []
    assert target.finish(said.append), "it never connected, so nothing can be lost"
    assert said == []
    connection = target.connection
    assert target.finish(said.append)
    assert said == [connection]
    connection.close()
    assert not target.finish(said.append)
    target.close()
    assert not target.finish(said.append)
    assert said == [connection]


@pytest.mark.usefixtures("standby_that_never_answers")
def test_last_write_does_not_wait_for_synchronous_standby(target: Target) -> None:
    """Otherwise a stopped consumer would not exit while the standby is down."""
    assert target.connection is not None
    with ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(target.finish, lambda connection: connection.execute("SELECT pg_current_xact_id()"))
        try:
            finishing.result(30)
        finally:
            while not finishing.done():
                target.cancel()
