"""External work of a migration: when the runtime advances it, and when it ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import psycopg
import pytest

from consumers.contract.external import Outside, Pace
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.pauses import set_paused
from consumers.runtime.assembly import consumer_of
from consumers.testing.waiting import PATIENCE, until
from infra.settings.model import Settings
from schemas.errors import OwnershipMoved
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, Feed, fill, written

pytestmark = pytest.mark.stack


class Works(SkipResets):
    """Has external work that the tests observe."""

    begun: ClassVar[int] = 0
    steps: ClassVar[int] = 0
    ended: ClassVar[int] = 0
    enough: ClassVar[int] = 10**9
    own_tables = "CREATE TABLE IF NOT EXISTS headrace.works (step integer PRIMARY KEY);"

    def work(self, outside: Outside) -> Iterator[Pace]:
        kind = type(self)
        kind.begun += 1
        try:
            while True:
                kind.steps += 1
                with outside.transaction() as cursor:
                    cursor.execute("INSERT INTO headrace.works VALUES (%s) ON CONFLICT DO NOTHING", (kind.steps,))
                yield Pace.DONE if kind.steps >= kind.enough else Pace.BUSY
        finally:
            kind.ended += 1


@pytest.fixture
def works() -> type[Works]:
    """A new class for each test, with its own counts."""
    return type("WorksHere", (Works,), {})


@pytest.fixture
def running(settings: Settings, works: type[Works]) -> Iterator[Callable[[], threading.Thread]]:
    """A function that starts a consumer in a thread; it is stopped after the test."""
    stopping = threading.Event()
    started: list[threading.Thread] = []

    def start() -> threading.Thread:
        runtime = consumer_of(settings, works.configure(settings.migration("skip_resets")), "main", stopping=stopping)
        started.append(threading.Thread(target=runtime.run))
        started[-1].start()
        return started[-1]

    yield start
    stopping.set()
    for thread in started:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def run(settings: Settings, works: type[Works]) -> None:
    migration = works.configure(settings.migration("skip_resets"))
    consumer_of(settings, migration, "main", stopping=threading.Event(), until_caught_up=True).run()


def test_external_work_runs_between_batches_and_has_its_own_table(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings, works: type[Works]
) -> None:
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    works.enough = 5
    run(settings, works)
    assert written(connection) == [1]
    assert connection.execute("SELECT max(step) >= 5 FROM headrace.works").fetchone() == (True,)


def test_consumer_has_caught_up_only_when_external_work_is_done(
    feed: Feed, settings: Settings, works: type[Works], connection: psycopg.Connection[Any]
) -> None:
    feed.snapshot({1: DEFAULT})
    works.enough = 300
    run(settings, works)
    assert works.steps >= 300
    assert works.begun == works.ended == 2, "work from the last events is checked once more"


def test_stopping_ends_external_work(
    feed: Feed, connection: psycopg.Connection[Any], works: type[Works], settings: Settings
) -> None:
    feed.snapshot({1: DEFAULT})
    stopping = threading.Event()
    runtime = consumer_of(settings, works.configure(settings.migration("skip_resets")), "main", stopping=stopping)
    thread = threading.Thread(target=runtime.run)
    thread.start()
    until(lambda: works.steps > 5, "it works")
    assert works.ended == 0
    stopping.set()
    thread.join(PATIENCE)
    assert (works.begun, works.ended) == (1, 1)


def test_pause_ends_external_work_and_resume_restarts_it(
    feed: Feed,
    connection: psycopg.Connection[Any],
    works: type[Works],
    settings: Settings,
    running: Callable[[], threading.Thread],
) -> None:
    feed.snapshot({1: DEFAULT})
    running()
    until(lambda: works.steps > 5, "it works")
    set_paused(settings, works, "main", True)
    until(lambda: works.ended == 1, "it was ended")
    steps = "SELECT count(*) FROM headrace.works"
    recorded = connection.execute(steps).fetchone()
    set_paused(settings, works, "main", True)
    assert connection.execute(steps).fetchone() == recorded, "nothing is written while it is paused"
    set_paused(settings, works, "main", False)
    until(lambda: works.begun == 2, "it restarted")


def test_lost_session_restarts_external_work(
    feed: Feed,
    connection: psycopg.Connection[Any],
    works: type[Works],
    running: Callable[[], threading.Thread],
) -> None:
    feed.snapshot({1: DEFAULT})
    running()
    until(lambda: works.steps > 5, "it works")
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    until(lambda: works.begun == 2, "it restarted")
    assert works.ended == 1


def test_lost_ownership_ends_external_work_and_consumer(
    feed: Feed, connection: psycopg.Connection[Any], works: type[Works], settings: Settings
) -> None:
    feed.snapshot({1: DEFAULT})
    works.enough = 1
    run(settings, works)
    before = connection.execute("SELECT count(*) FROM headrace.works").fetchone()
    connection.execute("UPDATE headrace.schema_ownership SET owner = 'ci', epoch = 2")
    with pytest.raises(OwnershipMoved, match="gitlab_main is owned by ci, not by main"):
        run(settings, works)
    assert works.begun == works.ended
    assert connection.execute("SELECT count(*) FROM headrace.works").fetchone() == before
