"""`headrace check` after a failover, or of a server restored from a copy: each case forced on real servers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.settings.model import Settings
from infra.stack.postgresql.server import EmbeddedPostgres
from producers.source import slots
from tests.producers.servers import own_server
from tests.producers.session.checks import AGAIN, at, copied, findings, restart_from_scratch, set_to, the_finding
from tests.producers.sources import Source, copy_all, running

pytestmark = pytest.mark.stack


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A server to be killed, restored and copied."""
    with own_server() as running_server:
        yield running_server


@pytest.fixture
def own(server: EmbeddedPostgres, bootstrap_servers: str, prefix: str) -> Iterator[Source]:
    """A source on that server."""
    with copied(server, bootstrap_servers, prefix) as source:
        yield source


@pytest.mark.long
def test_check_reports_server_restored_from_a_copy_of_its_files(own: Source, server: EmbeddedPostgres) -> None:
    own.connection.close()
    server.stop()
    kept = server.directory / "kept"
    subprocess.run(["cp", "-a", server.data, kept], check=True)
    server.start()
    with at(own, server).connection as connection:
        own.connection = connection
        connection.execute("INSERT INTO t VALUES (3)")
        copy_all(own)
    server.stop()
    subprocess.run(["rm", "-r", server.data], check=True)
    kept.rename(server.data)
    server.start()
    with at(own, server).connection as connection:
        own.connection = connection
        finding = the_finding(own)
        assert "the server was reset, for example restored from a backup" in finding.problem
        assert finding.remedy == AGAIN
        restart_from_scratch(own, finding)


@pytest.mark.long
def test_check_reports_failover_to_a_lagging_standby_and_back(own: Source, server: EmbeddedPostgres) -> None:
    standby = server.standby("behind")
    set_to(own.connection, "synchronized_standby_slots", "")
    standby.stop()
    own.connection.execute("INSERT INTO t VALUES (3)")
    copy_all(own)
    server.kill()
    standby.start()
    try:
        standby.promote()
        promoted = at(own, standby)
        finding = the_finding(promoted)
        assert "it was promoted or restored without the last changes" in finding.problem
        assert finding.remedy == AGAIN
        # New WAL gets positions that the topics have already passed.
        promoted.connection.execute("INSERT INTO t VALUES (4)")
        restart_from_scratch(promoted, finding)
        server.start()
        with at(own, server).connection as connection:
            own.connection = connection
            finding = the_finding(own)
            assert "are on timeline 2, but this server is on timeline 1 and was never on it" in finding.problem
            assert finding.remedy.startswith("correct databases.main.dsn")
        promoted.connection.close()
    finally:
        standby.abandon()


def test_check_reports_failover_before_the_slot_was_synchronized(own: Source, server: EmbeddedPostgres) -> None:
    standby = server.standby("early")
    try:
        with standby.connect() as connection:
            set_to(connection, "sync_replication_slots", "off")
            until(lambda: replayed(own.connection, connection), "the standby has all")
        server.kill()
        standby.promote()
        with at(own, standby).connection as connection:
            finding = the_finding(Source(at_settings(own, standby), connection))
            assert f"slot {own.slot} had not been synchronized to this server when it was promoted" in finding.problem
            assert finding.remedy.startswith(
                f"{AGAIN}; to keep it at the next failover: set sync_replication_slots = on"
            )
            restart_from_scratch(Source(at_settings(own, standby), connection), finding)
    finally:
        standby.abandon()


@pytest.mark.long
def test_failover_with_the_slot_resumes_at_the_same_position(own: Source, server: EmbeddedPostgres) -> None:
    standby = server.standby("ready")
    try:
        with standby.connect() as connection:
            with running(own) as producer:
                until(lambda: synchronized(own, connection, producer.caught_up), "the slot is on the standby")
            own.connection.execute("INSERT INTO t VALUES (3)")
            until(lambda: replayed(own.connection, connection), "the standby has all")
        server.kill()
        standby.promote()
        promoted = at(own, standby)
        with promoted.connection:
            set_to(promoted.connection, "synchronized_standby_slots", "")
            assert findings(promoted) == []
            promoted.connection.execute("INSERT INTO t VALUES (4)")
            copy_all(promoted)
            assert len(promoted.require_equal("public.t")) == 4, "resumed, not re-snapshotted"
            stream = promoted.state().stream
            assert stream is not None
            assert stream.timeline == 2
    finally:
        standby.abandon()


def at_settings(source: Source, server: EmbeddedPostgres) -> Settings:
    moved = at(source, server)
    moved.connection.close()
    return moved.settings


def replayed(primary: psycopg.Connection[Any], standby: psycopg.Connection[Any]) -> bool:
    row = primary.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert row is not None
    return standby.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", row).fetchone() == (True,)


def synchronized(source: Source, standby: psycopg.Connection[Any], caught_up: Callable[[], None]) -> bool:
    source.connection.execute("SELECT pg_log_standby_snapshot()")
    caught_up()
    state = slots.read(standby, source.slot)
    found = standby.execute(
        "SELECT temporary FROM pg_replication_slots WHERE slot_name = %s", (source.slot,)
    ).fetchone()
    return state is not None and state.synced and found == (False,)
