"""A step of a switchover ends within its limit, whatever its server does."""

from __future__ import annotations

import threading

import psycopg
import pytest

from producers.switchover.step_limit import Busy, StepLimit
from schemas.errors import Interrupted
from tests.conftest import Database

pytestmark = pytest.mark.stack

FOR_EVER = "SELECT pg_sleep(3600)"


def test_slow_statement_is_cancelled_on_the_server(database: Database) -> None:
    limit, connection = StepLimit(0.5), database.connect()
    limit.watch(connection)
    limit.waiting_for = "what never comes"
    with pytest.raises(Busy, match="timed out after 0 s waiting for what never comes; do that"), limit.step("do that"):
        connection.execute(FOR_EVER)
    assert connection.execute("SELECT 1").fetchone() == (1,), "the connection is as it was"


def test_stop_ends_a_statement(database: Database) -> None:
    limit, connection = StepLimit(), database.connect()
    limit.watch(connection)
    limit.waiting_for = "what never comes"
    threading.Timer(0.2, limit.stop.set).start()
    with pytest.raises(Interrupted, match="stopped while waiting for what never comes"), limit.step(None):
        connection.execute(FOR_EVER)


def test_server_that_does_not_answer_loses_its_connection(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, connection = StepLimit(0.2, cut_seconds=0.2), database.connect()
    limit.watch(connection)
    monkeypatch.setattr(psycopg.Connection, "cancel_safe", lambda *_, **__: None)
    with pytest.raises(Busy), limit.step(None):
        connection.execute(FOR_EVER)
    assert connection.closed


def test_error_within_the_limit_is_raised_unchanged(database: Database) -> None:
    limit, connection = StepLimit(), database.connect()
    limit.watch(connection)
    with pytest.raises(psycopg.errors.DivisionByZero), limit.step(None):
        connection.execute("SELECT 1 / 0")
