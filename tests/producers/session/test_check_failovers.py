"""What `headrace check` says after a failover, or of a server that was set back: each case forced on real servers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from infra.settings.model import Settings
from infra.stack.postgresql.server import EmbeddedPostgres
from producers.source import slots
from tests.producers.servers import own_server
from tests.producers.session.checks import AGAIN, at, copied, findings, read_anew, set_to, the_finding
from tests.producers.sources import Source, copy_all, running, until

pytestmark = pytest.mark.stack


@pytest.fixture
def server() -> Iterator[EmbeddedPostgres]:
    """A server to be killed, set back and copied."""
    with own_server() as running_server:
        yield running_server


@pytest.fixture
def own(server: EmbeddedPostgres, bootstrap_servers: str, prefix: str) -> Iterator[Source]:
    """A source on that server."""
    with copied(server, bootstrap_servers, prefix) as source:
        yield source


def test_a_server_that_was_set_back_by_a_copy_of_its_files(own: Source, server: EmbeddedPostgres) -> None:
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
        assert "it was set back, as by a backup" in finding.problem
        assert finding.remedy == AGAIN
        read_anew(own, finding)


def test_a_failover_to_a_standby_that_was_behind_and_back_to_the_server_it_left(
    own: Source, server: EmbeddedPostgres
) -> None:
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
        assert "it was promoted, or restored, without the last changes" in finding.problem
        assert finding.remedy == AGAIN
        # What is written now stands where the topics have been already.
        promoted.connection.execute("INSERT INTO t VALUES (4)")
        read_anew(promoted, finding)
        server.start()
        with at(own, server).connection as connection:
            own.connection = connection
            finding = the_finding(own)
            assert "are of timeline 2, and this server's log, of timeline 1, has never been on it" in finding.problem
            assert finding.remedy.startswith("correct databases.main.dsn")
        promoted.connection.close()
    finally:
        standby.abandon()


def test_a_failover_before_the_slot_was_on_the_standby(own: Source, server: EmbeddedPostgres) -> None:
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
                f"{AGAIN}; so that the next failover keeps it: sync_replication_slots = on"
            )
            read_anew(Source(at_settings(own, standby), connection), finding)
    finally:
        standby.abandon()


def test_a_failover_with_the_slot_goes_on_where_it_was(own: Source, server: EmbeddedPostgres) -> None:
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
            assert len(promoted.require_equal("public.t")) == 4, "read on, and not anew"
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
