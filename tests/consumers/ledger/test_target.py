"""The connection of a migration is opened again when it is lost, and gives up when it is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from consumers.ledger.target import LOCK_TIMEOUT, Target, backoff
from schemas.errors import HeadraceError, Interrupted, SettingsError
from tests.conftest import Database

pytestmark = pytest.mark.stack


@pytest.fixture
def stopping() -> threading.Event:
    return threading.Event()


@pytest.fixture
def waits() -> list[float]:
    """How long it wanted to wait, each time."""
    return []


@pytest.fixture
def target(database: Database, stopping: threading.Event, waits: list[float]) -> Iterator[Target]:
    made = Target(database.dsn, database="main", migration="m", stopping=stopping, wait=waits.append)
    yield made
    made.close()


def answer(connection: psycopg.Connection[Any]) -> object:
    row = connection.execute("SELECT 42").fetchone()
    return row[0] if row else None


def test_pauses_double_from_a_tenth_of_a_second_to_fifteen() -> None:
    for attempt, longest in ((1, 0.1), (2, 0.2), (5, 1.6), (9, 15.0), (1_000, 15.0)):
        assert longest * 0.75 - 0.0005 <= backoff(attempt) <= longest, "to the millisecond"


def test_a_lost_connection_is_opened_again_and_the_question_asked_again(
    target: Target, database: Database, waits: list[float]
) -> None:
    first = target.connection
    database.connect().execute("SELECT pg_terminate_backend(%s)", (first.info.backend_pid,))
    assert target.ask(answer) == 42
    assert target.connection is not first
    assert len(waits) == 1


@pytest.mark.parametrize(("statements", "locks"), [("0", "5s"), ("1min", "5s"), ("2s", "1s")])
def test_a_lock_is_waited_for_less_long_than_a_statement_may_take(
    statements: str, locks: str, target: Target, database: Database
) -> None:
    """A wait for a lock is told from a statement that takes too long by its own SQLSTATE."""
    database.connect().execute(f"ALTER DATABASE {database.name} SET statement_timeout = '{statements}'")
    assert target.connection.execute("SHOW lock_timeout").fetchone() == (locks,)


def test_where_statements_may_take_next_to_nothing_a_lock_is_still_not_waited_for_without_end(
    database: Database,
) -> None:
    """A lock_timeout of 0 would be none at all. As if it were set, since no statement gets through in 1 ms for sure."""
    connection = database.connect()
    settings = "(VALUES ('statement_timeout', '1')) AS settings (name, setting)"
    connection.execute(LOCK_TIMEOUT.replace("pg_settings", settings).encode())
    assert connection.execute("SHOW lock_timeout").fetchone() == ("1ms",)


def test_what_passes_is_asked_again_over_the_same_connection(target: Target, waits: list[float]) -> None:
    failures = [psycopg.errors.DeadlockDetected("a deadlock"), psycopg.errors.SerializationFailure("late")]

    def question(connection: psycopg.Connection[Any]) -> object:
        if failures:
            raise failures.pop()
        return answer(connection)

    before = target.connection
    assert target.ask(question) == 42
    assert target.connection is before
    assert len(waits) == 2


def test_what_waiting_cannot_mend_is_one_line_without_values(target: Target, waits: list[float]) -> None:
    with pytest.raises(HeadraceError, match=r"^database main: .*42P01 UndefinedTable; compare") as raised:
        target.ask(lambda connection: connection.execute("SELECT 'secret' FROM nothing"))
    assert "secret" not in str(raised.value)
    assert waits == []


def test_a_wrong_dsn_is_told_at_once(database: Database, stopping: threading.Event) -> None:
    wrong = Target(
        database.dsn.replace(database.name, "absent"),
        database="main",
        migration="m",
        stopping=stopping,
        wait=lambda _: None,
    )
    with pytest.raises(SettingsError, match="does not exist on that server"):
        wrong.ask(answer)


def test_stopping_ends_the_waiting_for_a_server(stopping: threading.Event, closed_port: int) -> None:
    def stop(_seconds: float) -> None:
        stopping.set()

    gone = Target(
        f"postgresql://127.0.0.1:{closed_port}/x", database="main", migration="m", stopping=stopping, wait=stop
    )
    with pytest.raises(Interrupted):
        gone.ask(answer)


def test_a_statement_under_way_is_cancelled_from_another_thread(
    target: Target, database: Database, stopping: threading.Event, eventually: Callable[..., None]
) -> None:
    pid = target.connection.info.backend_pid
    watcher = database.connect()

    def cancel_when_it_runs() -> None:
        query = "SELECT state, query FROM pg_stat_activity WHERE pid = %s"
        eventually(lambda: watcher.execute(query, (pid,)).fetchone() == ("active", "SELECT pg_sleep(600)"), "it runs")
        stopping.set()
        target.cancel()

    cancelling = threading.Thread(target=cancel_when_it_runs)
    cancelling.start()
    with pytest.raises(Interrupted):
        target.ask(lambda connection: connection.execute("SELECT pg_sleep(600)"))
    cancelling.join()


def test_last_words_need_a_connection_that_stands(target: Target) -> None:
    said: list[object] = []
    target.finish(said.append)
    assert said == [], "it never connected"
    connection = target.connection
    target.finish(said.append)
    assert said == [connection]
    connection.close()
    target.finish(said.append)
    assert said == [connection]


@pytest.mark.usefixtures("standby_that_never_answers")
def test_the_last_write_waits_for_no_synchronous_standby(target: Target) -> None:
    """A consumer that is stopped would not end while the standby is away."""
    assert target.connection is not None
    with ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(target.finish, lambda connection: connection.execute("SELECT pg_current_xact_id()"))
        try:
            finishing.result(30)
        finally:
            while not finishing.done():
                target.cancel()
