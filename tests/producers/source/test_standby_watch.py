"""A missing standby of synchronized_standby_slots is waited for and reported."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import psycopg
import pytest
import structlog
from prometheus_client import REGISTRY
from structlog.typing import EventDict

from consumers.operations.status import gather
from consumers.testing.waiting import until
from infra.postgres import standbys
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.state.positions import Positions
from producers.session.check import hindrances
from producers.source import slots
from producers.stream.connection import ReplicationStream
from schemas.errors import DatabaseUnavailable
from tests.producers.replicas import PUBLICATION
from tests.producers.servers import own_server
from tests.producers.sources import Running, Source, running, settings_for

pytestmark = pytest.mark.stack

STANDBY = "far"
SETTING = "synchronized_standby_slots"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with own_server() as running:
        yield running


@pytest.fixture(scope="module")
def standby(server: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    made = server.standby(STANDBY)
    yield made
    made.abandon()


@pytest.fixture
def own(bootstrap_servers: str, prefix: str, server: EmbeddedPostgres) -> Iterator[Source]:
    """A source on the server, which waits for no standby before the test says so."""
    set_to(server, "")
    dsn = server.create_database(prefix)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
        yield Source(settings_for(bootstrap_servers, prefix, dsn, "public.t"), connection)
        set_to(server, "")


def set_to(server: EmbeddedPostgres, slots_listed: str) -> None:
    with server.connect() as connection:
        connection.execute(f"ALTER SYSTEM SET {SETTING} = '{slots_listed}'")
        connection.execute("SELECT pg_reload_conf()")

    def in_force() -> bool:
        with server.connect() as connection:
            return connection.execute(f"SHOW {SETTING}").fetchone() == (slots_listed,)

    until(in_force, "the setting is in force")


def waits(source: Source) -> bool:
    return bool(standbys.awaited(source.connection, source.slot))


def gauge() -> float | None:
    return REGISTRY.get_sample_value("headrace_standby_awaited", {"source": "main"})


def said(lines: list[EventDict], event: str) -> list[str]:
    return [str(line.get("reason", "")) for line in lines if line["event"] == event]


def of_check(source: Source) -> list[str]:
    positions = Positions(source.settings.prefix, source.settings.kafka)
    found = hindrances(source.connection, source.settings, "main", positions)
    return [f"{each.problem}; {each.remedy}" for each in found]


def through(source: Source, producer: Running, mend: Callable[[], None], words: str) -> None:
    """Write while a standby is awaited; fail unless it is reported everywhere and the producer then continues."""
    source.connection.execute("INSERT INTO t SELECT max(id) + 1 FROM t")

    def noticed() -> bool:
        producer.check()
        return gauge() == 1

    with structlog.testing.capture_logs() as lines:
        until(noticed, "the producer to notice that it waits")
        (seen,) = gather(source.settings)["sources"]
        assert words in ", ".join(seen["waits_for"])
        mend()
        producer.caught_up()
        until(lambda: gauge() == 0, "the producer to notice that it is over")
    assert [words in reason for reason in said(lines, "stream waits for a standby")] == [True], "once, not each second"
    assert len(said(lines, "stream no longer waits for a standby")) == 1
    source.require_equal("public.t")
    # The standby confirms what the server has just written a moment later.
    until(lambda: gather(source.settings)["sources"][0]["waits_for"] == [], "the status shows that it is over")


@pytest.mark.long
def test_stream_waits_during_outage_of_standby(
    own: Source, server: EmbeddedPostgres, standby: EmbeddedPostgres
) -> None:
    with running(own) as producer:
        producer.caught_up()
        set_to(server, STANDBY)
        producer.caught_up()
        standby.stop()

        def mend() -> None:
            (finding,) = of_check(own)
            assert f"slot {own.slot} sends no new changes: standby slot {STANDBY} has no standby" in finding
            assert f"remove its slot from {SETTING}" in finding
            standby.start()

        through(own, producer, mend, f"standby slot {STANDBY} has no standby connected")
        assert of_check(own) == []


@pytest.mark.long
def test_stream_waits_for_standby_that_does_not_confirm(
    own: Source, server: EmbeddedPostgres, standby: EmbeddedPostgres
) -> None:
    """It is connected but behind: the server reports nothing about it."""
    set_to(server, STANDBY)
    with running(own) as producer:
        producer.caught_up()
        with standby.connect() as connection:
            row = connection.execute("SELECT pid FROM pg_stat_wal_receiver").fetchone()
        assert row is not None
        os.kill(row[0], signal.SIGSTOP)
        try:
            through(
                own,
                producer,
                lambda: os.kill(row[0], signal.SIGCONT),
                f"standby slot {STANDBY} has confirmed no more than",
            )
        finally:
            os.kill(row[0], signal.SIGCONT)


@pytest.mark.long
@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("nowhere", "standby slot nowhere does not exist"),
        (f"{STANDBY}, nowhere", "standby slot nowhere does not exist"),
        ("of_another", "slot of_another is logical, not a standby's physical slot"),
    ],
)
def test_listed_slot_that_is_not_a_standbys_is_reported(
    own: Source, server: EmbeddedPostgres, standby: EmbeddedPostgres, listed: str, words: str
) -> None:
    slots.create(own.connection, "of_another", failover=False)
    try:
        with running(own) as producer:
            producer.caught_up()
            set_to(server, listed)
            through(own, producer, lambda: set_to(server, STANDBY), words)
    finally:
        slots.drop(own.connection, "of_another")


@pytest.mark.long
def test_lost_standby_slot_is_reported(server: EmbeddedPostgres, own: Source) -> None:
    connection = own.connection
    connection.execute("SELECT pg_create_physical_replication_slot('unread', true)")
    with server.connect() as administrator:
        administrator.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        administrator.execute("SELECT pg_reload_conf()")
    try:

        def lost() -> bool:
            for _ in range(3):
                connection.execute("SELECT pg_logical_emit_message(false, '', '', true), pg_switch_wal()")
            connection.execute("CHECKPOINT")
            state = slots.read(connection, "unread")
            return state is not None and state.lost

        until(lost, "the standby's slot is lost")
        with server.connect() as administrator:
            administrator.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
            administrator.execute("SELECT pg_reload_conf()")
        with running(own) as producer:
            producer.caught_up()
            set_to(server, "unread")
            words = "standby slot unread is lost: recreate it and its standby"
            assert standbys.obstacles(connection, own.slot) == [words]
            through(own, producer, lambda: set_to(server, ""), words)
    finally:
        slots.drop(connection, "unread")


def test_slot_without_failover_waits_for_no_standby(server: EmbeddedPostgres, own: Source) -> None:
    slots.create(own.connection, own.slot, failover=False)
    set_to(server, "nowhere")
    assert standbys.obstacles(own.connection, own.slot) == []


def test_server_stopped_during_wait_is_unavailable(server: EmbeddedPostgres, own: Source) -> None:
    """It reports the awaited standby as an error."""
    own.connection.execute(f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")
    start = slots.create(own.connection, own.slot, failover=True)
    own.connection.execute("SELECT pg_create_physical_replication_slot('unread', true)")
    set_to(server, "unread")
    own.connection.execute("INSERT INTO t VALUES (3)")
    dsn = own.settings.database("main").dsn.get_secret_value()
    with ReplicationStream(dsn, own.slot, PUBLICATION, start) as stream:

        def stands() -> bool:
            stream.read(1000, 0.1)
            return waits(own)

        until(stands, "the stream to wait")
        own.connection.close()
        server.stop()
        with pytest.raises(DatabaseUnavailable, match=f"stream of slot {own.slot} ended .*unread"):
            read_on(stream)
    server.start()
    with psycopg.connect(dsn, autocommit=True) as connection:
        slots.drop(connection, "unread")


def read_on(stream: ReplicationStream) -> None:
    """Read until the stream ends."""
    while True:
        stream.read(1000, 0.1)
