"""A slot is created completely or not at all, whatever it waits for, on old and new servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import PATIENCE, until
from infra.postgres import standbys
from infra.postgres.connect import connect
from infra.stack.postgresql.databases import DatabaseServer
from producers.source import slots
from producers.source.transactions import blocking
from schemas.errors import Interrupted
from schemas.positions import Lsn
from tests.producers.processes import ROOT, producing, write_settings
from tests.producers.servers import own_server
from tests.producers.sources import Source, running, settings_for
from tests.server_versions import MAJORS, server_or_skip

pytestmark = pytest.mark.stack

INSERT = "INSERT INTO public.t VALUES (2)"
MAKES = """
import sys
from infra.postgres import standbys
from infra.postgres.connect import connect
from producers.source import slots

with connect(sys.argv[1], name="maker") as connection:
    slots.create(connection, sys.argv[2], failover=True)
"""


@pytest.fixture(scope="module", params=["oldest", "embedded"])
def server(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    """The oldest PostgreSQL that is supported, and the stack's version; a test here crashes it."""
    if request.param == "embedded":
        with own_server() as running:
            running.connect().execute("CREATE TABLE t (id int)").connection.close()
            yield running
        return
    with server_or_skip(MAJORS[0]) as oldest:
        oldest.connect().execute("CREATE TABLE t (id int)").connection.close()
        yield oldest


@pytest.fixture
def slot() -> str:
    return f"s_{uuid.uuid4().hex}"


@pytest.fixture
def looking(server: DatabaseServer) -> Iterator[psycopg.Connection[Any]]:
    with connect(server.dsn(), name="looking") as connection:
        yield connection


@contextmanager
def writing(server: DatabaseServer) -> Iterator[psycopg.Connection[Any]]:
    """A transaction that stays open until the end."""
    with psycopg.connect(server.dsn(), application_name="slow batch") as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        yield connection
        connection.rollback()


@contextmanager
def maker(server: DatabaseServer, slot: str) -> Iterator[subprocess.Popen[bytes]]:
    """A separate process that creates the slot."""
    process = subprocess.Popen([sys.executable, "-c", MAKES, server.dsn(), slot], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)


class Making:
    """A slot that is created in a thread of this process."""

    def __init__(self, server: DatabaseServer, slot: str, seconds: float | None = None) -> None:
        self.stop = threading.Event()
        self.result: Lsn | BaseException | None = None
        self.connection = connect(server.dsn(), name="maker")
        self._slot, self._seconds = slot, seconds
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = slots.create(
                self.connection, self._slot, failover=True, stop=self.stop, seconds=self._seconds
            )
        except Exception as error:
            self.result = error

    def end(self) -> Lsn | BaseException | None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.result


def being_made(connection: psycopg.Connection[Any], slot: str) -> bool:
    """Whether the slot exists and its creator waits."""
    state = slots.read(connection, slot)
    return state is not None and state.active_pid is not None and bool(blocking(connection, state.active_pid))


def test_slot_is_not_ready_while_it_is_created(
    server: DatabaseServer, looking: psycopg.Connection[Any], slot: str
) -> None:
    with writing(server):
        making = Making(server, slot)
        until(lambda: being_made(looking, slot), "the maker to wait")
        state = slots.read(looking, slot)
        assert state is not None
        assert (state.made, state.ready, state.confirmed_flush) == (False, False, None)
    start = making.end()
    making.connection.close()
    state = slots.read(looking, slot)
    assert state is not None
    assert (state.made, state.ready, state.confirmed_flush) == (True, True, start)


def test_slot_creation_names_awaited_transactions(
    server: DatabaseServer, looking: psycopg.Connection[Any], slot: str
) -> None:
    with writing(server) as slow:
        for statement in ("BEGIN", INSERT, "SAVEPOINT s", INSERT, f"PREPARE TRANSACTION '{slot}'"):
            looking.execute(statement)
        try:
            making = Making(server, slot, seconds=1.0)
            error = making.end()
            assert isinstance(error, slots.SlotAwaited)
            assert making.connection.execute("SELECT 1").fetchone() == (1,), "the session is as good as before"
        finally:
            making.connection.close()
            looking.execute(f"ROLLBACK PREPARED '{slot}'")
        assert f"prepared transaction '{slot}' of database postgres, since 2" in error.problem
        assert (
            f"a transaction of slow batch (process {slow.info.backend_pid}, database postgres, since 2" in error.problem
        )
        assert "ROLLBACK PREPARED" in error.remedy
    assert slots.read(looking, slot) is None


def test_stopped_slot_creation_leaves_no_slot(
    server: DatabaseServer, looking: psycopg.Connection[Any], slot: str
) -> None:
    with writing(server):
        making = Making(server, slot)
        until(lambda: being_made(looking, slot), "the maker to wait")
        making.stop.set()
        assert isinstance(making.end(), Interrupted)
        assert slots.read(looking, slot) is None
        making.connection.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_slot_creation_ends_with_its_process(
    server: DatabaseServer, looking: psycopg.Connection[Any], slot: str, number: signal.Signals
) -> None:
    with writing(server), maker(server, slot) as process:
        until(lambda: being_made(looking, slot), "the maker to wait")
        process.send_signal(number)
        until(lambda: slots.read(looking, slot) is None, "the server to notice")


def test_slot_creation_ends_with_server_crash(server: DatabaseServer, slot: str) -> None:
    with closing(connect(server.dsn(), name="looking")) as looking, closing(psycopg.connect(server.dsn())) as slow:
        slow.execute("INSERT INTO t VALUES (1)")
        making = Making(server, slot)
        until(lambda: being_made(looking, slot), "the maker to wait")
        looking.execute("CHECKPOINT")  # its files are on disk
        os.kill(slow.info.backend_pid, signal.SIGKILL)
        assert isinstance(making.end(), psycopg.OperationalError)
    making.connection.close()

    def gone() -> bool:
        with connect(server.dsn(), name="looking") as looking:
            return slots.read(looking, slot) is None

    # Until it has recovered, it refuses connections in several ways.
    until(gone, "the server to be back without the slot", passing=Exception)


def test_slot_creation_waits_for_another_session_that_creates_it(
    server: DatabaseServer, looking: psycopg.Connection[Any], slot: str
) -> None:
    """As after a kill that the server has not noticed, or cannot notice."""
    with writing(server):
        first = Making(server, slot)
        until(lambda: being_made(looking, slot), "the maker to wait")
        second = Making(server, slot, seconds=1.0)
        error = second.end()
        assert isinstance(error, slots.SlotAwaited)
        assert f"slot {slot} is still being created by process {first.connection.info.backend_pid}" in error.problem
        assert "a transaction of slow batch" in error.problem
        third, stopped = Making(server, slot), Making(server, slot)
        stopped.stop.set()
        assert isinstance(stopped.end(), Interrupted)
    start = first.end()
    assert isinstance(start, int)
    # Either it waited for the first to finish, or it finds the slot created.
    assert third.end() == start or isinstance(third.result, slots.SlotExists)
    for each in (first, second, third, stopped):
        each.connection.close()


def test_slot_is_created_here_when_other_session_fails(
    server: DatabaseServer, looking: psycopg.Connection[Any], slot: str
) -> None:
    with writing(server):
        first = Making(server, slot)
        until(lambda: being_made(looking, slot), "the maker to wait")
        second = Making(server, slot)
        first.stop.set()
        assert isinstance(first.end(), Interrupted)
    start = second.end()
    state = slots.read(looking, slot)
    assert state is not None
    assert state.ready
    assert state.confirmed_flush == start
    first.connection.close()
    second.connection.close()


@pytest.mark.long
def test_producer_killed_during_slot_creation_starts_again(
    bootstrap_servers: str, prefix: str, server: DatabaseServer, looking: psycopg.Connection[Any], tmp_path: Path
) -> None:
    looking.execute("CREATE TABLE public.kept (id int PRIMARY KEY); INSERT INTO public.kept VALUES (1)")
    source = Source(settings_for(bootstrap_servers, prefix, server.dsn(), "public.kept"), looking)
    config = write_settings(source.settings, tmp_path / "headrace.toml")
    try:
        with writing(server):
            with producing(config) as first:
                until(lambda: being_made(looking, source.slot), "the producer to wait")
                first.send(signal.SIGKILL)
                first.ended()
            with producing(config) as second:
                until(lambda: "slot waits for transactions" in second.log.read_text(), "the next one to wait")
                second.send(signal.SIGTERM)
                assert second.ended() == 0
                assert slots.read(looking, source.slot) is None
                text = second.log.read_text()
        assert "a transaction of slow batch" in text
        with running(source) as producer:
            producer.caught_up()
        source.require_equal("public.kept")
        source.drop_slot()
    finally:
        looking.execute("DROP TABLE public.kept; DROP PUBLICATION IF EXISTS headrace; DROP SCHEMA headrace CASCADE")


def test_temporary_slot_is_not_ready(looking: psycopg.Connection[Any], slot: str) -> None:
    looking.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", (slot,))
    state = slots.read(looking, slot)
    assert state is not None
    assert state.temporary
    assert not state.ready, "it goes with its session"


def test_no_standby_is_awaited_when_none_is_listed(looking: psycopg.Connection[Any], slot: str) -> None:
    """On a server before 17 there is neither such a setting nor such a slot."""
    slots.create(looking, slot, failover=True)
    assert standbys.obstacles(looking, slot) == standbys.awaited(looking, slot) == []
    assert not slots.ensure_failover(looking, slot)
    slots.drop(looking, slot)


def test_unusable_slots_are_not_ready() -> None:
    ready = slots.SlotState("s", "pgoutput", "d", None, Lsn(5), Lsn(1), "reserved", None, None, False, False)
    assert ready.ready
    assert replace(ready, active_pid=7, streaming=True).ready, "its producer reads it"
    for missing in (
        replace(ready, active_pid=7),  # a SQL function advances it
        replace(ready, plugin="test_decoding"),
        replace(ready, wal_status="lost"),
        replace(ready, confirmed_flush=None),
    ):
        assert not missing.ready
