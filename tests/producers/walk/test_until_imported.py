"""A virtual storage is walked until Praefect's database has it as imported, and not afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from consumers.testing.waiting import PATIENCE, until
from producers.walk.events import Kind
from producers.walk.until_imported import walk_unless_imported, walk_until_imported
from schemas.errors import DatabaseUnavailable, SettingsError, UsageError
from tests.conftest import Database
from tests.producers.storages import hashed, repository
from tests.producers.walk.walks import Walks

pytestmark = pytest.mark.stack

TABLE = """
    CREATE TABLE public.virtual_storages (
        virtual_storage text PRIMARY KEY, repositories_imported boolean NOT NULL DEFAULT false
    )
"""
IMPORT = """
    INSERT INTO public.virtual_storages VALUES ('default', true)
        ON CONFLICT (virtual_storage) DO UPDATE SET repositories_imported = true
"""


@pytest.fixture
def praefect(database: Database) -> psycopg.Connection:
    connection = database.connect()
    connection.execute(TABLE)
    return connection


@pytest.fixture
def walks(bootstrap_servers: str, prefix: str, tmp_path: Path, database: Database) -> Walks:
    for project in range(3):
        repository(tmp_path / "storage", hashed(project))
    storages = {"gitaly-0": {"path": str(tmp_path / "storage")}}
    return Walks(bootstrap_servers, prefix, storages, praefect=database.dsn)


def last_walk(walks: Walks) -> int:
    """Return the number of the last completed walk."""
    return max((row["walk_id"] for row in walks.rows(kind=Kind.END) if isinstance(row["walk_id"], int)), default=0)


def a_service_walks(praefect: psycopg.Connection) -> bool:
    """Whether a service holds the walker's lock."""
    return praefect.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    ).fetchone() == (1,)


def sessions(praefect: psycopg.Connection) -> int:
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'headrace walk default'"
    )
    row = praefect.execute(query).fetchone()
    return row[0] if row else 0


class Service:
    """`walk_until_imported` in a thread."""

    def __init__(self, walks: Walks, pause_seconds: float) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._walks, self._pause_seconds = walks, pause_seconds
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            walk_until_imported(self._walks.settings, "default", self.stop, pause_seconds=self._pause_seconds)
        except BaseException as error:
            self.error = error

    def ended(self) -> BaseException | None:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        return self.error


@contextmanager
def service(walks: Walks, pause_seconds: float = 3600.0) -> Iterator[Service]:
    running = Service(walks, pause_seconds)
    try:
        yield running
    finally:
        running.stop.set()
        running.thread.join(PATIENCE)


def test_imported_storage_is_walked_only_on_request(walks: Walks, praefect: psycopg.Connection, tmp_path: Path) -> None:
    praefect.execute("INSERT INTO public.virtual_storages VALUES ('another', true), ('default', false)")
    walk_unless_imported(walks.settings, "default", threading.Event())
    assert last_walk(walks) == 1, "another storage is imported, not this one"
    praefect.execute(IMPORT)
    walk_unless_imported(walks.settings, "default", threading.Event(), all_storages=True)
    walk_until_imported(walks.settings, "default", threading.Event())
    assert last_walk(walks) == 1
    command = [sys.executable, "-m", "headrace", "produce", "default", "--config", str(walks.config(tmp_path))]
    done = subprocess.run([*command, "--again"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert last_walk(walks) == 2


def test_walk_is_repeated_until_the_storage_is_imported(walks: Walks, praefect: psycopg.Connection) -> None:
    with service(walks, pause_seconds=0.01) as running:
        until(lambda: last_walk(walks) >= 2, "a second walk, since the first did not import")
        praefect.execute(IMPORT)
        assert running.ended() is None


def test_unreadable_storage_is_walked_once_it_is_readable(
    walks: Walks, praefect: psycopg.Connection, tmp_path: Path
) -> None:
    (tmp_path / "storage").rename(tmp_path / "away")
    with service(walks, pause_seconds=0.01) as running:
        until(lambda: a_service_walks(praefect), "the service to be at work")
        (tmp_path / "away").rename(tmp_path / "storage")
        until(lambda: last_walk(walks) >= 1, "a walk")
        praefect.execute(IMPORT)
        assert running.ended() is None


@pytest.mark.long
def test_one_of_several_processes_walks_and_another_takes_over(walks: Walks, praefect: psycopg.Connection) -> None:
    with service(walks) as first:
        until(lambda: last_walk(walks) == 1, "a walk")
        with service(walks) as second:
            until(lambda: sessions(praefect) == 2, "the second to be there")
            assert last_walk(walks) == 1
            first.stop.set()
            assert first.ended() is None
            until(lambda: last_walk(walks) == 2, "the walk of the second")
            # A lost connection, as in a restart of the database, does not end the service.
            praefect.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'headrace walk default'"
            )
            praefect.execute(IMPORT)
            assert second.ended() is None
    assert last_walk(walks) == 2


def test_stopped_service_exits_cleanly(walks: Walks, praefect: psycopg.Connection, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headrace", "produce", "default", "--config", str(walks.config(tmp_path))]
    child = subprocess.Popen([*command, "--until-imported"], stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: child.poll() is not None or last_walk(walks) == 1, "a walk")
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=PATIENCE)
    finally:
        child.kill()
    assert child.returncode == 0, said
    assert "stopped before the import" in said


def test_database_other_than_praefects_is_refused(walks: Walks) -> None:
    for walker in (walk_unless_imported, walk_until_imported):
        with pytest.raises(SettingsError, match=r"has no virtual_storages\.repositories_imported.*walk with --again"):
            walker(walks.settings, "default", threading.Event())


def test_unreachable_database_is_reported_at_once(walks: Walks) -> None:
    walks.praefect = "postgresql://nobody@127.0.0.1:1/praefect"
    for walker in (walk_unless_imported, walk_until_imported):
        with pytest.raises(DatabaseUnavailable):
            walker(walks.settings, "default", threading.Event())


def test_missing_praefect_database_allows_a_walk_but_not_until_imported(walks: Walks) -> None:
    walks.praefect = None
    walk_unless_imported(walks.settings, "default", threading.Event())
    assert last_walk(walks) == 1
    with pytest.raises(UsageError, match="no database named 'praefect'"):
        walk_until_imported(walks.settings, "default", threading.Event())
