"""The command `guard`, and `switchover --guard` on a real primary and a real standby."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.guard import write_guard
from infra.postgres.control import database_name, ensure_control_schema
from infra.stack.postgresql.server import EmbeddedPostgres
from tests.consumers.container_repositories import write_settings
from tests.documents import hold
from tests.producers.processes import ROOT
from tests.producers.servers import own_server

pytestmark = pytest.mark.stack

TABLES = """
    CREATE TABLE public.projects (id int PRIMARY KEY, n int);
    CREATE TABLE public.ci_builds (id int) PARTITION BY LIST (id);
    CREATE TABLE public.ci_builds_1 PARTITION OF public.ci_builds FOR VALUES IN (1);
    CREATE TABLE public.unknown (id int);
    INSERT INTO public.projects VALUES (1, 0);
"""


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedPostgres]:
    with own_server() as running:
        yield running


class Side:
    """The database `first`, and the settings of a move of gitlab_main from it to `second`."""

    def __init__(self, server: EmbeddedPostgres, name: str, directory: Path) -> None:
        self.server, self.name = server, name
        self.dsn = server.create_database(name)
        self.first = psycopg.connect(self.dsn, autocommit=True)
        ensure_control_schema(self.first, "first", ["gitlab_main", "gitlab_ci"])
        self.first.execute(TABLES.encode())
        self._directory = directory
        self.write(self.dsn)

    def write(self, second: str) -> None:
        self.config = write_settings(
            self._directory / "headrace.toml",
            {
                "prefix": self.name,
                "databases": {
                    "first": {"dsn": self.dsn, "gitlab_schemas": ["gitlab_main", "gitlab_ci"]},
                    "second": {
                        "dsn": second,
                        "gitlab_schemas": ["gitlab_main"],
                        "table_schemas": {"public.projects": "gitlab_main"},
                    },
                },
            },
        )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "headrace", *arguments, "--config", str(self.config)],
            cwd=ROOT, capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        hold(arguments, done.stdout)
        return done


@pytest.fixture
def side(own: EmbeddedPostgres, prefix: str, tmp_path: Path) -> Iterator[Side]:
    made = Side(own, prefix, tmp_path)
    yield made
    made.first.close()
    own.drop_database(prefix)


@pytest.mark.long
def test_guard_is_reinstalled_and_removed(side: Side) -> None:
    names = ["public.ci_builds", "public.ci_builds_1"]
    for report in ({"installed": names, "already": []}, {"installed": [], "already": names}):
        done = side.command("guard", "gitlab_ci", "--database", "first", "--yes", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"database": "first", **report}
    assert list(write_guard.installed(side.first)) == names
    removed = side.command("guard", "--remove", "--database", "first", "--yes")
    assert removed.stdout.splitlines() == [f"removed  {name}" for name in names]
    assert (
        "no table of database first has the guard"
        in side.command("guard", "--remove", "--database", "first", "--yes").stdout
    )
    assert write_guard.installed(side.first) == {}


def test_printed_sql_installs_the_same_guard(side: Side) -> None:
    printed = side.command("guard", "gitlab_main", "gitlab_ci", "--database", "first", "--sql")
    assert write_guard.installed(side.first) == {}, "it only prints"
    side.first.execute(printed.stdout.encode())
    side.first.execute(printed.stdout.encode())
    assert write_guard.installed(side.first) == {
        "public.ci_builds": "gitlab_ci", "public.ci_builds_1": "gitlab_ci", "public.projects": "gitlab_main",
    }  # fmt: skip
    side.first.execute(side.command("guard", "gitlab_ci", "--database", "first", "--remove", "--sql").stdout.encode())
    assert list(write_guard.installed(side.first)) == ["public.projects"]
    side.first.execute("ALTER TABLE public.projects DISABLE TRIGGER headrace_guard")
    side.first.execute(side.command("guard", "--database", "first", "--remove", "--sql").stdout.encode())
    assert write_guard.present(side.first) == {}
    assert side.first.execute("SELECT to_regprocedure('headrace.guard()')").fetchone() == (None,)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("gitlab_ci",), 2, "no database was given; name it with --database"),
        (("--database", "first"), 2, "no gitlab schema was given"),
        (("gitlab_pm", "--database", "first"), 2, "no table of database first is known to belong to gitlab_pm"),
        (("gitlab_shared", "--database", "first"), 2, "gitlab_shared needs no guard: every database has its own"),
        (("gitlab_ci", "--database", "third"), 2, "no database named 'third'"),
        (("gitlab_main", "--database", "second"), 3, "call this database second, but it is recorded as first"),
    ],
)
def test_unguardable_schema_is_refused_by_name(side: Side, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = side.command("guard", *arguments, "--yes")
    assert (done.returncode, write_guard.installed(side.first)) == (code, {}), done.stderr
    assert words in done.stderr


def test_guard_asks_without_yes(side: Side) -> None:
    done = side.command("guard", "gitlab_ci", "--database", "first")
    assert done.returncode == 1
    assert write_guard.installed(side.first) == {}


class Ends:
    """Both sides of a move."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.standby = side.server.standby(side.name)
        side.write(self.standby.dsn(side.name))
        self.second = psycopg.connect(self.standby.dsn(side.name), autocommit=True)

    def switchover(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.side.command(
            "switchover", "gitlab_main", "--from", "first", "--to", "second", "--yes", "--timeout", "30", *options
        )

    def close(self) -> None:
        self.second.close()
        self.standby.abandon()
        self.side.server.forget_standby(self.side.name)


@pytest.fixture
def ends(side: Side) -> Iterator[Ends]:
    made = Ends(side)
    yield made
    made.close()


def write(connection: psycopg.Connection[Any]) -> None:
    connection.execute("UPDATE public.projects SET n = n + 1")


def test_switchover_installs_the_guard_on_both_sides_before_the_close(ends: Ends) -> None:
    done = ends.switchover("--guard")
    assert done.returncode == 0, done.stderr
    for connection in (ends.side.first, ends.second):
        assert write_guard.installed(connection) == {"public.projects": "gitlab_main"}
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        write(ends.side.first)
    write(ends.second)
    ends.side.first.execute("INSERT INTO public.ci_builds VALUES (1)")  # which stays


def test_switchover_begun_without_the_guard_installs_it_later(ends: Ends) -> None:
    assert ends.switchover().returncode == 0
    write(ends.side.first)  # nothing keeps it off
    done = ends.switchover("--guard")
    assert done.returncode == 0, done.stderr
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        write(ends.side.first)
    write(ends.second)


def test_switchover_closes_nothing_while_a_guarded_table_is_in_use(ends: Ends) -> None:
    with psycopg.connect(ends.side.dsn) as application:
        write(application)
        done = ends.switchover("--guard", "--timeout", "1")
    assert done.returncode == 1
    assert "public.projects stayed in use" in done.stderr
    owner = ends.side.first.execute("SELECT DISTINCT owner FROM headrace.schema_ownership").fetchall()
    assert owner == [("first",)]
    write(ends.side.first)


def test_guard_on_a_standby_is_refused(ends: Ends) -> None:
    ends.side.first.execute("UPDATE headrace.database SET name = 'second'")
    until(lambda: database_name(ends.second) == "second", "the standby has replayed that")
    done = ends.side.command("guard", "gitlab_main", "--database", "second", "--yes")
    assert done.returncode == 3
    assert "second is a standby; install the guard on its primary" in done.stderr
