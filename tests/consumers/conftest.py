"""A database with container_repositories, its topic, and consumers in threads or processes."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.delivery import group
from consumers.migrations.skip_resets import SkipResets
from consumers.operations import catalog
from consumers.runtime.assembly import consumer_of
from consumers.runtime.totals import Totals
from consumers.testing.waiting import PATIENCE
from infra.settings.file import load_settings
from infra.settings.model import Settings
from tests.conftest import Build, Database
from tests.consumers.container_repositories import TABLE, Feed, start_member, write_settings
from tests.consumers.gitserver.driver import World
from tests.consumers.gitservers import Application, make_tables

Member = subprocess.Popen[str]


@pytest.fixture(autouse=True)
def members_are_gone_when_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer of this process has left its group when it returns, however slow the machine is."""
    monkeypatch.setattr(group, "_LEAVE_SECONDS", PATIENCE)


@pytest.fixture(autouse=True)
def plugins_are_forgotten() -> Iterator[None]:
    """What a test imported from folders of its own is no module of the next one's."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    added = [each for each in sys.path if each not in path]
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if name.startswith("headrace_plugins.") or any(file.startswith(folder) for folder in added):
            del sys.modules[name]
    catalog._discovered.cache_clear()


@pytest.fixture
def config(bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path) -> Path:
    """A settings file with one database, `main`, which owns gitlab_main."""
    return write_settings(
        tmp_path / "headrace.toml",
        {
            "prefix": prefix,
            "kafka": {"bootstrap_servers": bootstrap_servers},
            "databases": {"main": {"dsn": database.dsn, "gitlab_schemas": ["gitlab_main"]}},
            "migrations": {"skip_resets": {"batch_size": 500, "sub_batch_size": 10}},
        },
    )


@pytest.fixture
def settings(config: Path) -> Settings:
    return load_settings(config)


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    """A connection to a database that has the table and a log of the writes to it."""
    opened = database.connect()
    opened.execute(TABLE)
    return opened


@pytest.fixture
def feed(settings: Settings, connection: psycopg.Connection[Any]) -> Feed:
    return Feed(settings)


@pytest.fixture
def catch_up(settings: Settings) -> Callable[..., Totals]:
    """A function that runs a consumer in this thread until it has caught up."""

    def run(chosen: Settings = settings, migration: SkipResets | None = None) -> Totals:
        work = migration or SkipResets.configure(chosen.migration("skip_resets"))
        return consumer_of(chosen, work, "main", stopping=threading.Event(), until_caught_up=True).run()

    return run


@pytest.fixture
def members(config: Path) -> Iterator[Callable[..., Member]]:
    """A function that starts a consumer as a process; all are killed after the test."""
    started: list[Member] = []

    def start(**options: Any) -> Member:
        started.append(start_member(config, **options))
        return started[-1]

    yield start
    for member in started:
        member.kill()
        member.communicate()


@pytest.fixture
def gitserver_world(
    new_databases: Callable[[str | None], Database],
    template_database: Callable[[str, Build], str],
    bootstrap_servers: str,
    prefix: str,
    tmp_path: Path,
) -> World:
    """Gitservers whose consumers can be driven without Kafka; the `world` of the tests that move repositories."""
    database = new_databases(template_database("gitservers", make_tables))
    return World(database, tmp_path, kafka=bootstrap_servers, prefix=prefix)


@pytest.fixture
def application(gitserver_world: World) -> Application:
    return Application(gitserver_world.settings, gitserver_world.connection)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A local port without a listener, reserved during the test."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def ready(connection: psycopg.Connection[Any]) -> Callable[[], bool]:
    """A function that returns whether headrace's tables exist."""
    return lambda: connection.execute("SELECT to_regclass('headrace.progress')").fetchone() != (None,)


@pytest.fixture
def ledger(connection: psycopg.Connection[Any], ready: Callable[[], bool]) -> Callable[[], Mapping[str, Any]]:
    """A function that returns the sums of the ledger's current run."""

    def sums() -> Mapping[str, Any]:
        if not ready():
            return {"applied": 0, "skipped": 0, "dead_letters": 0, "next": 0}
        row = connection.execute(
            "SELECT coalesce(sum(applied), 0), coalesce(sum(skipped), 0), coalesce(sum(dead_letters), 0),"
            " coalesce(sum(next_offset), 0) FROM headrace.progress p JOIN headrace.migrations m"
            " ON m.name = p.migration AND m.run = p.run"
        ).fetchone()
        assert row is not None
        return dict(zip(("applied", "skipped", "dead_letters", "next"), map(int, row), strict=True))

    return sums
