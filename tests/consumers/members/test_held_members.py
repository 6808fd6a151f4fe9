"""Each health indicator under a load that trips it: consumers are throttled, stay in the group, and resume.

Two consumers run with a role that has exactly what `headrace init --sql` grants.
"""

from __future__ import annotations

import itertools
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import KafkaException
from psycopg.conninfo import make_conninfo

from consumers.operations.status import gather
from consumers.testing.waiting import PATIENCE, until
from infra.health.indicator import indicators
from infra.kafka import clients
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.stack.postgresql.server import EmbeddedPostgres
from schemas.topics import group_name
from tests.administering import whole_script
from tests.consumers.container_repositories import MEMBER, TABLE, TOO_MANY_TAGS, Feed, fill, write_settings, written
from tests.producers.servers import own_server

pytestmark = pytest.mark.stack

ROLE = "consumer"
ROWS = 40
FILLER = range(1_000_000, 1_020_000)
HEALTH = {
    "archive": 2,
    "autovacuum": True,
    "lock_waits": 1,
    "long_transactions": 1,
    "replica_lag": 1,
    "sql": "SELECT reason FROM public.fever",
    "wal_rate": 5,
}
_RELEASES = """
    CREATE TABLE public.releases (member text);
    CREATE FUNCTION public.log_release() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            INSERT INTO public.releases VALUES (OLD.member);
            RETURN NULL;
        END $$;
    CREATE TRIGGER log_release AFTER DELETE ON headrace.throttles FOR EACH ROW EXECUTE FUNCTION public.log_release();
"""
THROTTLED = {"archive_mode": "on", "archive_command": "true", "autovacuum_naptime": "1s"}


class World:
    """A migration with two consumers on a server that can be made unhealthy."""

    def __init__(self, server: EmbeddedPostgres, bootstrap_servers: str, directory: Path) -> None:
        self.server = server
        self._keys = itertools.count()
        dsn = server.create_database("held")
        self.sql = psycopg.connect(dsn, autocommit=True)
        self.sql.execute(TABLE.encode())
        self.sql.execute("CREATE TABLE public.fever (reason text)")
        fill(self.sql, dict.fromkeys(FILLER, ("default", None)))
        self.config = write_settings(
            directory / "headrace.toml",
            {
                "prefix": f"h{secrets.token_hex(3)}",
                "kafka": {"bootstrap_servers": bootstrap_servers},
                "databases": {
                    "main": {
                        "dsn": make_conninfo(dsn, user=ROLE, password="p"),
                        "gitlab_schemas": ["gitlab_main"],
                        "tables": ["public.container_repositories"],
                    }
                },
                "migrations": {"skip_resets": {"continuous": True, "health_seconds": 0.2, "health": HEALTH}},
            },
        )
        self.settings: Settings = load_settings(self.config)
        self.sql.execute(whole_script(self.settings).encode())
        self.sql.execute(_RELEASES.encode())
        self.sql.execute(f"ALTER ROLE {ROLE} PASSWORD 'p'".encode())
        # The tests' write log and the operator's custom query need their own grants.
        self.sql.execute(f"GRANT INSERT ON public.writes TO {ROLE}; GRANT SELECT ON public.fever TO {ROLE}".encode())
        self.feed = Feed(self.settings)
        self.members: list[subprocess.Popen[bytes]] = []
        self._logs = [directory / f"{number}.log" for number in range(2)]

    def connect(self) -> psycopg.Connection[Any]:
        return self.server.connect("held")

    def start(self) -> None:
        for path in self._logs:
            with path.open("wb") as log:  # not a pipe, which no process would read meanwhile
                command = [sys.executable, "-c", MEMBER, str(self.config), "skip_resets", "no"]
                self.members.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log))
        until(lambda: len(self.group()) == 2 and all(self.group().values()), "each consumer has partitions")

    def group(self) -> dict[str, frozenset[tuple[str, int]]]:
        """Return each group member's id in Kafka, which changes when it rejoins, and its partitions."""
        name = group_name(self.settings.prefix, "skip_resets")
        client = clients.admin(self.settings.kafka)  # kept, since destroying the client fails pending requests
        try:
            found = client.describe_consumer_groups([name], request_timeout=PATIENCE)[name].result(PATIENCE)
        except KafkaException:  # no consumer has joined yet
            return {}
        return {
            member.member_id: frozenset((each.topic, each.partition) for each in member.assignment.topic_partitions)
            for member in found.members
        }

    def status(self) -> dict[str, Any]:
        (found,) = [one for one in gather(self.settings)["migrations"] if one["name"] == "skip_resets"]
        return dict(found)

    def more(self) -> list[int]:
        """Add rows to reset, and their events; return their ids."""
        first = next(self._keys) * ROWS
        rows = dict.fromkeys(range(first, first + ROWS), TOO_MANY_TAGS)
        fill(self.sql, rows)
        self.feed.snapshot(rows)
        return sorted(rows)

    def reset(self) -> list[int]:
        """Return the ids of written rows, once per write; the loads write to other rows."""
        return [key for key in written(self.sql) if key not in FILLER]

    def holds(self) -> list[tuple[str, str]]:
        """Return name and reason of every throttled consumer."""
        return self.sql.execute("SELECT member, reason FROM headrace.throttles").fetchall()

    def look_again(self) -> None:
        """Wait until every throttled consumer has checked again and is still throttled."""

        def seen() -> dict[str, datetime]:
            found = self.sql.execute("SELECT member, seen_at FROM headrace.throttles")
            return dict(found.fetchall())

        before = seen()

        def all_looked() -> bool:
            now = seen()
            return all(member in now and now[member] > at for member, at in before.items())

        until(all_looked, "the throttled consumers check again")

    def releases(self) -> int:
        """Return how often a throttle ended."""
        row = self.sql.execute("SELECT count(*) FROM public.releases").fetchone()
        assert row is not None
        return int(row[0])

    def held_all_the_while(self) -> tuple[list[int], dict[str, Any]] | None:
        """Send rows to throttled consumers; return their ids and the status.

        None if a throttle ended meanwhile: a load on a busy machine may have gaps.
        """
        before = self.releases()
        wanted = self.more()
        for _ in range(2):
            self.look_again()
        found, wrote = self.status(), set(wanted) & set(self.reset())
        if self.releases() != before or len(self.holds()) < len(self.members):
            return None
        assert not wrote, "written while throttled"
        return wanted, found

    def well(self) -> bool:
        return not self.holds()

    def close(self) -> list[str]:
        """Stop the consumers; return their logs."""
        for member in self.members:
            member.send_signal(signal.SIGTERM)
        for member in self.members:
            try:
                member.wait(PATIENCE)
            finally:
                member.kill()
                member.wait()
        self.sql.close()
        return [path.read_text() for path in self._logs]


@pytest.fixture(scope="module")
def world(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with own_server(**THROTTLED) as server:
        made = World(server, bootstrap_servers, tmp_path_factory.mktemp("held"))
        try:
            made.start()
            yield made
        finally:
            logs = made.close()
        assert all(log.count('"assigned"') <= 2 for log in logs), "a rebalance, though no consumer joined or left"
        assert '"assigned"' in "".join(logs)
        assert "Traceback" not in "".join(logs)


def setting(connection: psycopg.Connection[Any], name: str, value: str) -> None:
    connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
    connection.execute("SELECT pg_reload_conf()")


@contextmanager
def archive(world: World) -> Iterator[None]:
    """Archiving fails, and segments pile up."""
    setting(world.sql, "archive_command", "false")
    for _ in range(4):
        world.sql.execute("SELECT pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()")
    yield
    setting(world.sql, "archive_command", "true")
    world.sql.execute("SELECT pg_logical_emit_message(false, 'test', 'x'), pg_switch_wal()")


@contextmanager
def autovacuum(world: World) -> Iterator[None]:
    """A worker is on the table, at a page every tenth of a second."""
    world.sql.execute("DELETE FROM container_repositories WHERE id = ANY(%s)", (list(FILLER[::2]),))
    world.sql.execute(
        "ALTER TABLE container_repositories SET (autovacuum_enabled = true, autovacuum_vacuum_threshold = 1,"
        " autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_cost_delay = 100)"
    )
    yield
    # The worker yields to sessions waiting for its lock.
    world.sql.execute("ALTER TABLE container_repositories SET (autovacuum_enabled = false)")


@contextmanager
def lock_waits(world: World) -> Iterator[None]:
    """Two sessions wait for a row locked by a third."""
    with ExitStack() as opened:
        pool = opened.enter_context(ThreadPoolExecutor(2))
        holder, *waiting = [opened.enter_context(world.connect()) for _ in range(3)]
        with holder.transaction():
            change = "UPDATE container_repositories SET name = name WHERE id = %s"
            holder.execute(change, (FILLER[1],))
            waits = [pool.submit(each.execute, change, (FILLER[1],)) for each in waiting]
            yield
        for wait in waits:
            wait.result(PATIENCE)


@contextmanager
def long_transactions(world: World) -> Iterator[None]:
    """A transaction stays open."""
    with world.connect() as connection, connection.transaction():
        connection.execute("UPDATE container_repositories SET name = name WHERE id = %s", (FILLER[1],))
        yield


@contextmanager
def replica_lag(world: World) -> Iterator[None]:
    """A standby replays nothing while WAL grows."""
    standby = world.server.standby("replica")
    try:
        with standby.connect() as replica:
            replica.execute("SELECT pg_wal_replay_pause()")
            world.sql.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 3000000), true)")
            yield
            replica.execute("SELECT pg_wal_replay_resume()")
    finally:
        standby.abandon()
        world.server.forget_standby("replica")


@contextmanager
def sql(world: World) -> Iterator[None]:
    """The custom query returns a row."""
    world.sql.execute("INSERT INTO fever VALUES ('it is hot')")
    yield
    world.sql.execute("DELETE FROM fever")


@contextmanager
def wal_rate(world: World) -> Iterator[None]:
    """Two sessions write WAL as fast as possible, so that it grows at every sample."""
    stop = threading.Event()

    def write() -> None:
        with world.connect() as connection:
            while not stop.is_set():
                connection.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 4000000))")

    with ThreadPoolExecutor(2) as pool:
        writing = [pool.submit(write) for _ in range(2)]
        try:
            yield
        finally:
            stop.set()
        for each in writing:
            each.result(PATIENCE)


LOADS: dict[str, Callable[[World], AbstractContextManager[None]]] = {
    load.__name__: load for load in (archive, autovacuum, lock_waits, long_transactions, replica_lag, sql, wal_rate)
}


def test_each_indicator_has_a_load() -> None:
    assert LOADS.keys() == HEALTH.keys() == indicators().keys()


@pytest.mark.long
@pytest.mark.parametrize("indicator", LOADS)
def test_consumer_is_throttled_in_group_and_resumes(world: World, indicator: str) -> None:
    until(world.well, "no consumer is throttled")
    members = world.group()
    with LOADS[indicator](world):
        seen = None
        while seen is None:
            until(
                lambda: sum(f"{indicator}: " in reason for _, reason in world.holds()) == 2,
                f"both consumers are throttled by {indicator}",
            )
            seen = world.held_all_the_while()
        wanted, found = seen
        assert found["state"] == "throttled"
        assert f"{indicator}: " in found["throttled_by"]
        assert world.group() == members, "the group is as it was"
    until(lambda: set(wanted) <= set(world.reset()), "it continues")
    until(world.well, "no consumer is throttled")
    assert sorted(world.reset()) == sorted(set(world.reset())), "each row once"
    assert world.group() == members, "the group is as it was"
