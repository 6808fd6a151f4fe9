"""Each health indicator on a real server with the condition that it detects."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.health.indicator import BLIND, Fine, Health, Limit, Signal, Stop, Unknown, indicators, limits
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.stack.processes.keeper import Keeper
from schemas.errors import SettingsError

pytestmark = pytest.mark.stack

Connection = psycopg.Connection[Any]
TABLE = "public.patients"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server whose archiving fails and whose autovacuum runs every second."""
    directory = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    directory.chmod(0o711)  # the server's own user passes through when the tests run as root
    keeper = Keeper(remove=directory)
    unhealthy = {"archive_mode": "on", "archive_command": "false", "autovacuum_naptime": "1s"}
    running = EmbeddedPostgres(directory / "postgres", keeper, fsync=False, settings=unhealthy)
    running.start()
    yield running
    running.abandon()
    keeper.close()


@pytest.fixture
def connections(server: EmbeddedPostgres) -> Iterator[Callable[[], Connection]]:
    """A function that connects; closed after the test, with the table gone."""
    opened: list[Connection] = []

    def connect() -> Connection:
        opened.append(server.connect())
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()
    with server.connect() as last:
        last.execute(f"DROP TABLE IF EXISTS {TABLE}")


@pytest.fixture
def database(connections: Callable[[], Connection]) -> Connection:
    connection = connections()
    connection.execute(f"CREATE TABLE {TABLE} (id bigint PRIMARY KEY, note text) WITH (autovacuum_enabled = false)")
    connection.execute(f"INSERT INTO {TABLE} SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n")
    return connection


def asking(database: Connection, name: str, limit: Limit) -> Callable[[], Signal]:
    """Return a function that queries one indicator."""
    health = Health({name: limit}, [TABLE])
    return lambda: health.signals(database)[name]


def becomes(kind: type[Signal], ask: Callable[[], Signal]) -> Callable[[], bool]:
    return lambda: isinstance(ask(), kind)


def test_autovacuum_on_the_table_throttles(database: Connection) -> None:
    ask = asking(database, "autovacuum", True)
    assert ask() == Fine()
    database.execute(f"DELETE FROM {TABLE} WHERE id % 2 = 0")
    # At a page every tenth of a second the worker needs far longer than the test.
    database.execute(
        f"ALTER TABLE {TABLE} SET (autovacuum_enabled = true, autovacuum_vacuum_threshold = 1,"
        " autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_cost_delay = 100)"
    )
    until(becomes(Stop, ask), "autovacuum runs on the table")
    assert ask() == Stop("autovacuum is running on patients")
    assert asking(database, "autovacuum", True)() != Fine()
    assert Health({"autovacuum": True}, ["public.other"]).signals(database) == {
        "autovacuum": Unknown("42P01 UndefinedTable")
    }
    database.execute(f"ALTER TABLE {TABLE} SET (autovacuum_enabled = false)")
    database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_progress_vacuum")
    until(becomes(Fine, ask), "the worker is gone")


def test_segments_that_cannot_be_archived_throttle(database: Connection) -> None:
    ask = asking(database, "archive", 2)
    for _ in range(4):
        database.execute(f"UPDATE {TABLE} SET note = 'y' WHERE id = 1")
        database.execute("SELECT pg_switch_wal()")
    until(becomes(Stop, ask), "segments are waiting")
    assert asking(database, "archive", 42)() == Fine()
    database.execute("ALTER SYSTEM SET archive_command = 'true'")
    database.execute("SELECT pg_reload_conf()")
    try:
        database.execute("SELECT pg_switch_wal()")
        until(becomes(Fine, ask), "they are archived")
    finally:
        database.execute("ALTER SYSTEM RESET archive_command")
        database.execute("SELECT pg_reload_conf()")


def test_wal_that_grows_too_fast_throttles(database: Connection) -> None:
    ask = asking(database, "wal_rate", 0.000001)
    assert ask() == Unknown("first sample, no rate yet")
    database.execute(f"UPDATE {TABLE} SET note = 'z'")
    assert isinstance(ask(), Stop)
    slow = asking(database, "wal_rate", 1_000_000)
    slow()
    assert slow() == Fine()


def test_lagging_standby_throttles(server: EmbeddedPostgres, database: Connection) -> None:
    ask = asking(database, "replica_lag", 1)
    standby = server.standby("replica")
    try:
        standby.start()
        with standby.connect() as replica:
            replica.execute("SELECT pg_wal_replay_pause()")
            database.execute(f"INSERT INTO {TABLE} SELECT n, repeat('x', 100) FROM generate_series(100000, 130000) n")
            until(becomes(Stop, ask), "the standby is behind")
            replica.execute("SELECT pg_wal_replay_resume()")
            until(becomes(Fine, ask), "it has caught up")
    finally:
        standby.abandon()
        server.forget_standby("replica")


def test_sessions_waiting_for_locks_throttle(database: Connection, connections: Callable[[], Connection]) -> None:
    ask = asking(database, "lock_waits", 1)
    holder, waiting = connections(), [connections(), connections()]
    with ThreadPoolExecutor(2) as pool:
        with holder.transaction():
            holder.execute(f"UPDATE {TABLE} SET note = 'held' WHERE id = 1")
            for each in waiting:
                pool.submit(each.execute, f"UPDATE {TABLE} SET note = 'waited' WHERE id = 1")
            until(becomes(Stop, ask), "both wait")
            assert ask() == Stop(f"2 sessions are waiting for locks on {TABLE}")
            assert asking(database, "lock_waits", 5)() == Fine()
        until(becomes(Fine, ask), "no session waits")


def test_long_running_transaction_throttles(database: Connection, connections: Callable[[], Connection]) -> None:
    ask = asking(database, "long_transactions", 0)
    assert ask() == Fine()
    other = connections()
    with other.transaction():
        other.execute(f"UPDATE {TABLE} SET note = 'open' WHERE id = 2")
        said = ask()
        assert isinstance(said, Stop)
        assert f"process {other.info.backend_pid}" in said.reason
        assert asking(database, "long_transactions", 3600)() == Fine()
    assert ask() == Fine()


def test_custom_query_throttles(database: Connection) -> None:
    def ask(query: str) -> Signal:
        return asking(database, "sql", query)()

    assert ask("SELECT 'too hot' WHERE false") == Fine()
    assert ask("SELECT false") == Fine()
    assert ask("SELECT NULL") == Fine()
    assert ask("SELECT 'it is ' || 90 || ' %'") == Stop("it is 90 %")
    assert ask("SELECT 1") == Stop("the query in the settings returned a row")
    assert ask("SELECT nothing") == Unknown("42703 UndefinedColumn")
    assert ask(f"DELETE FROM {TABLE} RETURNING id") == Unknown("25006 ReadOnlySqlTransaction")
    assert ask("SELECT pg_sleep(60)") == Unknown("57014 QueryCanceled"), "no answer never throttles"


def test_every_indicator_is_enabled_unless_disabled() -> None:
    everything = {"archive", "autovacuum", "lock_waits", "long_transactions", "replica_lag", "sql", "wal_rate"}
    assert set(indicators()) >= everything
    assert limits({}, "migrations.m.health") == {
        "archive": 42,
        "autovacuum": True,
        "lock_waits": 5,
        "long_transactions": 3600,
        "replica_lag": 256,
    }
    chosen = limits({"autovacuum": False, "wal_rate": 50, "sql": "SELECT 1", "archive": True}, "migrations.m.health")
    assert "autovacuum" not in chosen
    assert (chosen["wal_rate"], chosen["sql"], chosen["archive"]) == (50, "SELECT 1", 42)


@pytest.mark.parametrize(
    ("health", "said"),
    [
        ({"temperature": 40}, "unknown key migrations.m.health.temperature; indicators: archive, autovacuum"),
        ({"archive": "many"}, "migrations.m.health.archive must be a number or false"),
        ({"sql": 1}, "migrations.m.health.sql must be a string or false"),
    ],
)
def test_invalid_limit_is_refused(health: dict[str, Limit], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        limits(health, "migrations.m.health")


def test_role_without_pg_monitor_reports_unknown_never_healthy(database: Connection) -> None:
    everything = {"archive": 2, "autovacuum": True, "long_transactions": 0, "replica_lag": 1, "lock_waits": 5}
    database.execute("CREATE ROLE blind; GRANT SELECT ON public.patients TO blind; SET ROLE blind")
    try:
        said = Health(everything, [TABLE]).signals(database)
        assert said["lock_waits"] == Fine()
        assert said["archive"] == Unknown("42501 InsufficientPrivilege")
        assert {said[name] for name in ("autovacuum", "long_transactions", "replica_lag")} == {Unknown(BLIND)}
        database.execute("RESET ROLE; GRANT pg_monitor TO blind; SET ROLE blind")
        assert not [one for one in Health(everything, [TABLE]).signals(database).values() if isinstance(one, Unknown)]
    finally:
        database.execute("RESET ROLE; DROP OWNED BY blind; DROP ROLE blind")
