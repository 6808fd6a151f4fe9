"""The page costs a database at most two statements a second for all viewers together, and none without viewers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import until
from consumers.web import watcher
from infra.settings.model import DatabaseSettings, Settings
from infra.state.positions import StreamState
from schemas.positions import Lsn
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill
from tests.consumers.web import ten_migrations
from tests.consumers.web.console import running
from tests.consumers.web.statements import counting

pytestmark = pytest.mark.stack

TURNS = 20
VIEWERS = 3
_BEGIN = 3
"""The statements of the first second: two that open the connection, and one of the turn before the count began."""


def stream() -> StreamState:
    return StreamState(
        source="main",
        instance="i",
        slot="none",
        system_identifier="1",
        commit_lsn=Lsn(1),
        ordinal=0,
        confirmed_lsn=Lsn(1),
        ts_ms=1,
        log_bytes_per_second=1.0,
    )


@pytest.mark.long
def test_ten_migrations_and_three_viewers_cost_two_statements_a_second(
    feed: Feed,
    connection: psycopg.Connection[Any],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = dict.fromkeys(range(ten_migrations.ROWS), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    ten = ten_migrations.with_ten(settings)
    # As if a producer ran, too: its slot and standbys are asked about.
    monkeypatch.setattr("consumers.web.observation.Observation._stream_of", lambda *_: stream)
    with counting(settings.databases["main"].dsn.get_secret_value()) as (dsn, counted), ten_migrations.at_work(ten):
        through = DatabaseSettings.model_validate({**ten.databases["main"].model_dump(exclude={"dsn"}), "dsn": dsn})
        watched = ten.model_copy(update={"databases": {"main": through}})
        with running(watched, {}) as console:
            until(
                lambda: sum(one["state"] == "running" for one in console.snapshot()["migrations"]) == 10,
                "all are at work",
            )
            began, before = time.monotonic(), counted.statements
            viewers = [threading.Thread(target=view, args=(console.snapshot, TURNS)) for _ in range(VIEWERS)]
            for viewer in viewers:
                viewer.start()
            for viewer in viewers:
                viewer.join()
            seconds, statements = time.monotonic() - began, counted.statements - before
            assert counted.connections == 1
            assert statements >= 3, "it did look"
            assert statements <= 2 * seconds + _BEGIN, (statements, seconds)
            assert sum(one["applied"] for one in console.snapshot()["migrations"]) > 0


def view(look: Callable[[], object], turns: int) -> None:
    """Ask as often as the answers come, up to ten times a second: more often than any page."""
    pause = threading.Event()
    for _ in range(turns * 10):
        look()
        pause.wait(0.1)


def test_console_without_viewers_asks_nothing(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "WATCHED_SECONDS", 0.5)
    with counting(settings.databases["main"].dsn.get_secret_value()) as (dsn, counted):
        through = settings.databases["main"].model_copy(update={"dsn": type(settings.databases["main"].dsn)(dsn)})
        with running(settings.model_copy(update={"databases": {"main": through}}), {}) as console:
            assert console.get("/").status == 200
            assert counted.connections == 0
            console.snapshot()
            assert counted.connections == 1
            mine = (
                "SELECT FROM pg_stat_activity WHERE application_name = 'headrace web' AND datname = current_database()"
            )
            until(lambda: not connection.execute(mine).fetchall(), "its connection is closed")
            # What was read within the last second is shown without a question.
            until(lambda: console.snapshot()["problems"] == [] and counted.connections == 2, "it asks again")
