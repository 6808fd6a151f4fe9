"""The slot monitor's forecast, by itself and on a server whose slot is about to be lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from consumers.testing.waiting import until
from infra.service import log
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.state.positions import StreamState
from producers.session import slot_monitor
from producers.session.slot_monitor import DISK, IDLE_TIMEOUT, KEEP_SIZE, Rate, Reading, SlotMonitor, WalGrowth
from producers.source import slots
from schemas.positions import Lsn
from tests.producers.replicas import emit_message
from tests.producers.servers import own_server

MB = 1_000_000


def slot(**more: Any) -> slots.SlotState:
    state = slots.SlotState(
        "s", "pgoutput", "d", None, Lsn(3 * MB), Lsn(MB), "reserved", 100 * MB, None, failover=True, synced=False
    )
    return replace(state, **more)


READING = Reading(slot(), Lsn(11 * MB), at=1000.0)
RATE = Rate(MB, 120)
IDLE = slot(safe_wal_size=None, inactive_since=datetime.fromtimestamp(940, UTC))


@pytest.mark.parametrize(
    ("reading", "rate", "seconds", "cause", "left"),
    [
        (READING, RATE, 100.0, KEEP_SIZE, 100 * MB),
        (READING, None, None, None, 100 * MB),
        (READING, Rate(0, 120), None, None, 100 * MB),
        (replace(READING, disk_free=50 * MB), RATE, 50.0, DISK, 50 * MB),
        (replace(READING, disk_free=500 * MB), RATE, 100.0, KEEP_SIZE, 100 * MB),
        (replace(READING, slot=slot(safe_wal_size=None)), RATE, None, None, None),
        (replace(READING, slot=slot(safe_wal_size=-5, wal_status="unreserved")), None, 0.0, KEEP_SIZE, -5),
        (replace(READING, slot=slot(wal_status="lost", safe_wal_size=None)), RATE, 0.0, None, None),
        (replace(READING, slot=IDLE, idle_timeout=3600), RATE, 3540.0, IDLE_TIMEOUT, None),
        (replace(READING, slot=replace(IDLE, active_pid=7), idle_timeout=3600), RATE, 3600.0, IDLE_TIMEOUT, None),
        (replace(READING, slot=replace(IDLE, synced=True), idle_timeout=3600), RATE, None, None, None),
    ],
)
def test_forecast_computes_time_until_the_slot_is_lost(
    reading: Reading, rate: Rate | None, seconds: float | None, cause: str | None, left: int | None
) -> None:
    found = slot_monitor.forecast(reading, rate)
    assert (found.seconds, found.cause, found.left_bytes) == (seconds, cause, left)


@pytest.mark.parametrize(
    ("state", "at_risk"),
    [
        (slot(), True),
        (slot(safe_wal_size=4000 * MB), False),
        (slot(active_pid=7), False),
        (slot(active_pid=7, restart_lsn=Lsn(0), safe_wal_size=10 * MB), True),
        (slot(safe_wal_size=None, wal_status="unreserved"), True),
        (slot(wal_status="lost"), True),
    ],
)
def test_briefly_lagging_reader_is_not_a_risk(state: slots.SlotState, at_risk: bool) -> None:
    assert slot_monitor.forecast(replace(READING, slot=state), RATE).at_risk is at_risk


def test_forecast_is_readable() -> None:
    assert str(slot_monitor.forecast(READING, Rate(10_000, 90))) == (
        "slot s retains 10.0 MB of WAL; 100.0 MB may still be written (max_slot_wal_keep_size);"
        " unread it is lost in 2 h 46 min; WAL grows by 10.0 kB/s, measured over 1 min 30 s"
    )
    assert str(slot_monitor.forecast(replace(READING, slot=IDLE, idle_timeout=3600), None)) == (
        "slot s retains 10.0 MB of WAL; unread it is lost in 59 min (idle_replication_slot_timeout)"
    )
    active = slot_monitor.forecast(replace(READING, slot=replace(IDLE, active_pid=7), idle_timeout=60), None)
    assert "; without its reader it is lost in 1 min (idle_replication_slot_timeout)" in str(active)
    assert not active.at_risk, "while it is read it is not lost"
    full = str(slot_monitor.forecast(replace(READING, slot=slot(active_pid=7), disk_free=2 * MB), RATE))
    assert "without its reader it fills the disk in 2 s" in full
    unreserved = slot_monitor.forecast(replace(READING, slot=slot(wal_status="unreserved", safe_wal_size=0)), RATE)
    assert "the next checkpoint removes what it needs unless it is read at once" in str(unreserved)
    assert str(slot_monitor.forecast(replace(READING, slot=slot(wal_status="lost")), RATE)) == "slot s is lost"


def test_wal_rate_is_the_greater_of_the_last_minute_and_the_whole_window() -> None:
    growth = WalGrowth()
    assert growth.rate is None
    growth.add(0, Lsn(0))
    growth.add(0.1, Lsn(5))
    assert growth.rate is None, "too short a time"
    growth.add(100, Lsn(1000))
    assert growth.rate == Rate(10, 100)
    growth.add(110, Lsn(2000))
    assert growth.rate == Rate(100, 10), "a sudden load"
    for at in range(120, 2000, 10):
        growth.add(at, Lsn(2000))
    assert growth.rate == Rate(0, 600), "old samples are dropped"
    growth.add(2010, Lsn(10))
    assert growth.rate is None, "another server"


def stream(commit: int, at: float, rate: float | None = None) -> StreamState:
    return StreamState(
        source="main", instance="i", slot="s", system_identifier="7", commit_lsn=Lsn(commit), ordinal=0,
        confirmed_lsn=Lsn(commit), ts_ms=int(at * 1000), log_bytes_per_second=rate, log_seconds=600 if rate else 0,
    )  # fmt: skip


def test_wal_rate_is_remembered_after_the_producer_stopped() -> None:
    assert slot_monitor.remembered(None, READING) is None
    assert slot_monitor.remembered(stream(MB, at=990), READING) is None, "ten seconds are too short"
    assert slot_monitor.remembered(stream(MB, at=900), READING) == Rate(100_000, 100)
    assert slot_monitor.remembered(stream(MB, at=900, rate=7 * MB), READING) == Rate(7 * MB, 600)
    assert slot_monitor.remembered(stream(MB, at=900, rate=7), READING) == Rate(100_000, 100)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with own_server(max_slot_wal_keep_size="64MB") as running:
        yield running


def write(connection: psycopg.Connection[Any], segments: int) -> None:
    """Let the WAL grow by so many segments of 16 MB, with few writes."""
    for _ in range(segments):
        connection.execute("SELECT pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()")


@pytest.mark.stack
def test_forecast_follows_a_slot_until_it_is_lost(server: EmbeddedPostgres) -> None:
    with server.connect() as connection:
        assert slot_monitor.read(connection, "near") is None
        slots.create(connection, "near", failover=False)
        try:
            before = slot_monitor.read(connection, "near")
            assert before is not None
            assert before.disk_free, "the server is on this machine"
            write(connection, 2)
            now = slot_monitor.read(connection, "near")
            assert now is not None
            found = slot_monitor.forecast(now, Rate(MB, 60))
            assert 1 << 24 <= found.retained_bytes <= 3 << 24
            assert (found.limit, found.status, found.active) == (KEEP_SIZE, "reserved", False)
            left = slot_monitor.forecast(before, None).left_bytes
            assert left is not None
            assert found.left_bytes is not None
            assert 0 < found.left_bytes < left <= 5 << 24
            assert found.seconds == pytest.approx(found.left_bytes / MB)
            write(connection, 4)
            unreserved = slot_monitor.read(connection, "near")
            assert unreserved is not None
            assert slot_monitor.forecast(unreserved, None).status == "unreserved"
            connection.execute("CHECKPOINT")
            lost = slot_monitor.read(connection, "near")
            assert lost is not None
            assert slot_monitor.forecast(lost, None).seconds == 0
            assert lost.slot.invalidation_reason == "wal_removed"
        finally:
            slots.drop(connection, "near")


@pytest.mark.stack
def test_slot_at_risk_is_logged_at_most_once_a_minute(server: EmbeddedPostgres) -> None:
    with server.connect() as connection, capture_logs() as lines:
        watch = SlotMonitor("main", "logged", 256 << 20, log.get())
        assert watch.look(connection) is None, "no slot yet"
        slots.create(connection, "logged", failover=False)
        try:
            found = watch.look(connection)
            assert found is not None
            assert not found.at_risk
            write(connection, 6)
            for _ in range(3):
                watch.look(connection)
            watch.look_over_new_connection(server.dsn())
            watch.look_over_new_connection("postgresql://nobody@127.0.0.1:1/none")
        finally:
            slots.drop(connection, "logged")
    (warning,) = [line for line in lines if line["log_level"] == "warning"]
    assert warning["event"] == "slot at risk"
    assert "the next checkpoint removes what it needs" in warning["reason"]


@pytest.mark.stack
def test_slot_that_retains_much_wal_is_helped_to_release_it(server: EmbeddedPostgres) -> None:
    """The server logs running transactions by itself only every 15 seconds; nothing here waits for that."""
    with server.connect() as connection:
        connection.execute("CREATE PUBLICATION helped FOR ALL TABLES")
        slots.create(connection, "helped", failover=False)
        watch = SlotMonitor("main", "helped", 64 << 20, log.get())
        try:

            def let_go() -> bool:
                watch.look(connection)
                emit_message(connection)
                connection.execute(
                    "SELECT count(*) FROM pg_logical_slot_get_binary_changes('helped', NULL, NULL,"
                    " 'proto_version', '1', 'publication_names', 'helped')"
                )
                state = slot_monitor.read(connection, "helped")
                return state is not None and slot_monitor.forecast(state, None).retained_bytes < 16 << 20

            write(connection, 2)
            until(let_go, "the slot lets go")
        finally:
            slots.drop(connection, "helped")
            connection.execute("DROP PUBLICATION helped")


@pytest.mark.stack
def test_role_without_rights_gets_a_forecast_without_disk(server: EmbeddedPostgres) -> None:
    with server.connect() as connection:
        connection.execute("CREATE ROLE plain; CREATE PUBLICATION plain FOR ALL TABLES")
        slots.create(connection, "plain", failover=False)
        try:
            write(connection, 2)
            connection.execute("SET ROLE plain")
            reading = slot_monitor.read(connection, "plain")
            assert reading is not None
            assert reading.disk_free is None
            found = SlotMonitor("main", "plain", 1 << 20, log.get()).look(connection)
            assert found is not None
            assert found.retained_bytes > 1 << 20
        finally:
            connection.execute("RESET ROLE; DROP PUBLICATION plain; DROP ROLE plain")
            slots.drop(connection, "plain")
