"""A start that is stopped: its waits are interrupted, and nothing is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.service.signals import bounded
from producers.session.acquire import take_session, take_slot
from producers.source import slots
from producers.source.publication import ensure_publication
from producers.source.tables import captured_tables
from producers.stream.connection import SlotInUse
from schemas.errors import Interrupted
from tests.conftest import Database
from tests.producers.sources import Source

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]


@contextmanager
def set_once(connection: psycopg.Connection[Any], waits: psycopg.Connection[Any]) -> Iterator[threading.Event]:
    """An event that is set as soon as `waits` waits for another session, as `connection` sees it."""
    stop = threading.Event()
    query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"

    def watch() -> None:
        until(lambda: connection.execute(query, (waits.info.backend_pid,)).fetchone() is not None, "it to wait")
        stop.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield stop
    watcher.join()


def test_slot_creation_that_waits_for_a_transaction_is_interruptible(database: Database) -> None:
    starting, looking, writing = database.connect(), database.connect(), database.connect(autocommit=False)
    writing.execute("CREATE TABLE t (id int)")  # in progress until the end of the test
    with (
        set_once(looking, starting) as stop,
        pytest.raises(Interrupted, match="stopped while waiting for the database"),
    ):
        with bounded(starting, stop):
            slots.create(starting, "t_given_up", failover=True)
    assert slots.read(looking, "t_given_up") is None
    assert starting.execute("SELECT 1").fetchone() == (1,), "the connection is still usable"


def test_slot_takeover_is_interruptible(new_source: NewSource, monkeypatch: pytest.MonkeyPatch) -> None:
    source = new_source("CREATE TABLE t (id int PRIMARY KEY)", "public.t")
    settings = source.settings.database("main")
    stop = threading.Event()
    tables = captured_tables(source.connection, "main", settings, source.settings.prefix)
    ensure_publication(source.connection, settings.publication, tables)
    start = slots.create(source.connection, source.slot, failover=False)

    def take() -> Any:
        return take_slot(source.connection, settings.address, "main", source.slot, settings.publication, start, stop)

    reader = take()
    try:
        # A reader that reconnects however often it is terminated.
        def held(*_: object, **__: object) -> None:
            stop.set()
            raise SlotInUse(source.slot, None)

        monkeypatch.setattr("producers.session.acquire.ReplicationStream", held)
        with pytest.raises(Interrupted, match=f"stopped while taking over slot {source.slot}"):
            take()
    finally:
        reader.close()


def test_session_of_a_hanging_producer_is_terminated_with_its_locks(database: Database) -> None:
    hanging, other, next_one = database.connect(autocommit=False), database.connect(), database.connect()
    other.execute("CREATE TABLE t (id int)")
    going_on = threading.Event()
    take_session(hanging, "main", "slot_of_main", going_on)
    take_session(other, "other", "slot_of_another", going_on)
    hanging.execute("SELECT * FROM t")  # it never comes back to its transaction
    take_session(next_one, "main", "slot_of_main", going_on)
    other.execute("SET lock_timeout = '120s'")
    other.execute("TRUNCATE t")
    with pytest.raises(psycopg.OperationalError):
        hanging.execute("SELECT 1")


def hangs(_connection: psycopg.Connection[Any], _pid: int) -> None:
    """Ends nothing, as if the other backend hung in the kernel."""


def test_session_takeover_is_interruptible(database: Database) -> None:
    first, second = database.connect(), database.connect()
    stop = threading.Event()
    take_session(first, "main", "slot_of_main", stop)
    stop.set()
    with pytest.raises(Interrupted, match="stopped while"):
        take_session(second, "main", "slot_of_main", stop, end=hangs)
    with pytest.raises(SlotInUse, match="slot_of_main"):
        take_session(second, "main", "slot_of_main", threading.Event(), end=hangs, seconds=0.0)
