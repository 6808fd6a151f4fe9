"""Refused and ended streams lose nothing, on a real server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from consumers.testing.waiting import until
from infra.stack import Stack
from producers.source import slots
from producers.stream import messages as m
from producers.stream.connection import (
    PublicationMissing,
    ReplicationStream,
    SlotInUse,
    SlotLost,
    SlotMissing,
)
from schemas.errors import DatabaseUnavailable, Fenced, HeadraceError, Refused
from schemas.positions import Lsn
from tests.conftest import start_stack
from tests.overloaded import pinned_slowly
from tests.producers.replicas import PUBLICATION, of, prepare, reading

pytestmark = pytest.mark.stack


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as opened:
        opened.execute("CREATE TABLE t (id bigint PRIMARY KEY)")
        yield opened


def test_a_second_reader_is_refused_with_the_first_ones_pid(
    dsn: str, slot: str, connection: psycopg.Connection[Any]
) -> None:
    start = prepare(connection, slot)
    with reading(dsn, slot, start):
        state = slots.read(connection, slot)
        assert state is not None
        with pytest.raises(SlotInUse, match=f"slot {slot} is in use by .* {state.active_pid}") as caught:
            ReplicationStream(dsn, slot, PUBLICATION, start)
    assert caught.value.pid == state.active_pid
    assert isinstance(caught.value, Fenced)


def test_missing_slot_is_refused(dsn: str, slot: str, connection: psycopg.Connection[Any]) -> None:
    connection.execute(f"CREATE PUBLICATION {PUBLICATION}")
    with pytest.raises(SlotMissing, match=f'slot {slot}: .*"{slot}" does not exist; Create it'):
        ReplicationStream(dsn, slot, PUBLICATION, Lsn(0))


def test_statement_timeout_at_start_is_unavailable(
    dsn: str, slot: str, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.execute(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET statement_timeout = 100', current_database()); END $$"
    )
    start = prepare(connection, slot)
    monkeypatch.setattr("producers.stream.connection.pinned", pinned_slowly)
    with pytest.raises(
        DatabaseUnavailable, match="too slow to start a session: canceling statement due to statement timeout"
    ):
        ReplicationStream(dsn, slot, PUBLICATION, start)


def test_a_publication_that_is_missing_is_never_a_silent_gap(
    dsn: str, slot: str, connection: psycopg.Connection[Any]
) -> None:
    start = slots.create(connection, slot, failover=False)
    with pytest.raises(PublicationMissing, match=f"publication {PUBLICATION} does not exist") as caught:
        ReplicationStream(dsn, slot, PUBLICATION, start)
    assert isinstance(caught.value, Refused)
    # It exists now, but not as of the later changes: the server would omit them.
    connection.execute("INSERT INTO t VALUES (1)")
    connection.execute(f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")
    with reading(dsn, slot, start) as reader, pytest.raises(PublicationMissing, match=PUBLICATION):
        reader.until_mark(connection)


def test_role_without_replication_is_refused(dsn: str, slot: str, connection: psycopg.Connection[Any]) -> None:
    role = f"r_{uuid.uuid4().hex}"
    start = prepare(connection, slot)
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(sql.Identifier(role)))
    try:
        with pytest.raises(HeadraceError, match="REPLICATION") as caught:
            ReplicationStream(make_conninfo(dsn, user=role, password="x"), slot, PUBLICATION, start)
        assert "password" not in str(caught.value)
    finally:
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_terminated_stream_is_unavailable(dsn: str, slot: str, connection: psycopg.Connection[Any]) -> None:
    start = prepare(connection, slot)
    with reading(dsn, slot, start) as reader:
        state = slots.read(connection, slot)
        assert state is not None
        connection.execute("SELECT pg_terminate_backend(%s)", (state.active_pid,))
        with pytest.raises(DatabaseUnavailable, match=f"stream of slot {slot} ended at .*: terminating"):
            reader.until(lambda: False)
        with pytest.raises(DatabaseUnavailable):
            reader.until(lambda: False)


def test_frames_before_end_are_returned_before_error(dsn: str, slot: str, connection: psycopg.Connection[Any]) -> None:
    start = prepare(connection, slot)
    connection.execute("INSERT INTO t SELECT generate_series(1, 100)")
    sent = "SELECT active_pid FROM pg_replication_slots JOIN pg_stat_replication ON pid = active_pid "
    sent += "WHERE slot_name = %s AND sent_lsn >= %s::pg_lsn"
    row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    assert row is not None
    with reading(dsn, slot, start) as reader:
        active = until(lambda: connection.execute(sent, (slot, row[0])).fetchone(), "the server has sent all rows")
        connection.execute("SELECT pg_terminate_backend(%s, 60000)", active)
        with pytest.raises(DatabaseUnavailable, match="terminating"):
            reader.until(lambda: False)
    assert len(of(reader.messages, m.Insert)) == 100
    assert type(reader.messages[-1]) is m.Commit


def test_unreachable_server_is_unavailable(slot: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="does not answer"):
        ReplicationStream("host=127.0.0.1 port=1 dbname=x", slot, PUBLICATION, Lsn(0))


# These break their server, so they have a separate one.


@pytest.fixture(scope="module")
def own_stack() -> Iterator[Stack]:
    with start_stack() as running:
        yield running


@pytest.fixture
def own_dsn(own_stack: Stack) -> Iterator[str]:
    own_stack.postgres.start()
    name = f"d_{uuid.uuid4().hex}"
    dsn = own_stack.postgres.create_database(name)
    with psycopg.connect(dsn, autocommit=True) as opened:
        opened.execute("CREATE TABLE t (id bigint PRIMARY KEY)")
    yield dsn
    own_stack.postgres.start()
    own_stack.postgres.drop_database(name)


def test_killed_server_is_detected_and_loses_nothing(own_stack: Stack, own_dsn: str, slot: str) -> None:
    with psycopg.connect(own_dsn, autocommit=True) as connection:
        start = prepare(connection, slot)
        connection.execute("INSERT INTO t VALUES (1)")
        with reading(own_dsn, slot, start) as reader:
            reader.until_mark(connection)
            own_stack.postgres.kill()
            with pytest.raises(DatabaseUnavailable, match=f"stream of slot {slot} ended at [0-9A-F]+/"):
                reader.until(lambda: False)
            with pytest.raises(DatabaseUnavailable):
                reader.stream.confirm(start)
    with pytest.raises(DatabaseUnavailable, match="does not answer"):
        ReplicationStream(own_dsn, slot, PUBLICATION, start)
    own_stack.postgres.start()
    with psycopg.connect(own_dsn, autocommit=True) as connection, reading(own_dsn, slot, start) as again:
        (insert,) = of(again.until_mark(connection), m.Insert)
    assert insert.after == [b"1"]


def test_a_server_that_shuts_down_waits_until_all_is_confirmed(own_stack: Stack, own_dsn: str, slot: str) -> None:
    with psycopg.connect(own_dsn, autocommit=True) as connection:
        start = prepare(connection, slot)
        connection.execute("INSERT INTO t VALUES (1)")
    with reading(own_dsn, slot, start) as reader, ThreadPoolExecutor(1) as pool:
        # A walsender that has sent nothing yet may be ended like any other session.
        reader.until(lambda: bool(of(reader.messages, m.Insert)))
        reader.stream.confirm(start)
        before = sum(each.reply_requested for each in reader.keepalives)
        stopping = pool.submit(own_stack.postgres.stop)
        reader.until(lambda: sum(each.reply_requested for each in reader.keepalives) >= before + 3)
        assert not stopping.done()
        with pytest.raises(DatabaseUnavailable, match=f"stream of slot {slot} ended"):
            reader.until(lambda: reader.confirm_idle() and False)
        stopping.result()


def test_slot_without_its_wal_is_lost(own_stack: Stack, own_dsn: str, slot: str) -> None:
    with psycopg.connect(own_dsn, autocommit=True) as connection:
        start = prepare(connection, slot)
        connection.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        connection.execute("SELECT pg_reload_conf()")
        try:

            def lost() -> bool:
                """Write and checkpoint; the checkpointer may not have reloaded the setting yet."""
                for _ in range(3):
                    connection.execute("SELECT pg_logical_emit_message(false, '', '', true), pg_switch_wal()")
                connection.execute("CHECKPOINT")
                found = slots.read(connection, slot)
                return found is not None and found.lost

            until(lost, "the slot is lost")
        finally:
            connection.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
            connection.execute("SELECT pg_reload_conf()")
        state = slots.read(connection, slot)
        assert state is not None
        assert state.lost
        assert (state.wal_status, state.invalidation_reason) == ("lost", "wal_removed")
        with pytest.raises(SlotLost, match=f"slot {slot}: .*; Drop and recreate the slot"):
            ReplicationStream(own_dsn, slot, PUBLICATION, start)
