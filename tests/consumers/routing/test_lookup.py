"""Lookups follow the cursors with one query a second, and stay right without the database."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from consumers.routing import lookup
from consumers.routing.lookup import NEVER, Cursor, CursorTooOld, Reading, Router, homes
from consumers.routing.placement import (
    Algorithm,
    Placement,
    md5_home,
    normalised,
    order_key,
    partition_of,
    rendezvous_home,
)
from consumers.testing.waiting import until
from infra.settings.gitserver import GitserverSettings
from infra.stack.postgresql.server import EmbeddedPostgres
from infra.stack.processes.keeper import Keeper
from schemas.errors import DatabaseUnavailable
from tests.conftest import Database

GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "routing.md"
NODES = ("gitserver-0:3178", "gitserver-1:3178", "gitserver-2:3178")
PLACEMENT = Placement(NODES, {"github.com/pinned/one": NODES[2]})
TABLE = """
    CREATE SCHEMA headrace;
    CREATE TABLE headrace.rehash_cursors (
        partition integer PRIMARY KEY, upto text COLLATE "C", finished boolean NOT NULL DEFAULT false,
        changed_at timestamptz NOT NULL DEFAULT now()
    );
"""
NAME = next(name for name in map("github.com/a/{}".format, range(99)) if len(homes(PLACEMENT, name, NEVER)) == 2)
OLD, NEW = md5_home(NAME, NODES), rendezvous_home(NAME, NODES)


@pytest.fixture(autouse=True)
def a_first_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for the first query even on a slow machine: tests choose when a router has no cursors."""
    monkeypatch.setattr(lookup, "_PATIENCE_SECONDS", 120.0)


def gitserver() -> GitserverSettings:
    return GitserverSettings(nodes=NODES, pins=dict(PLACEMENT.pins), refresh_seconds=0.02, grace_seconds=60)


def passed(upto: str | None, *, finished: bool = False) -> Reading:
    return Reading(0.0, {partition_of(NAME): Cursor(None if upto is None else order_key(upto), finished)})


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        (NEVER, (OLD, NEW)),
        (passed(None), (OLD, NEW)),
        (passed(NAME), (NEW, OLD)),
        (passed(f"{NAME}/after"), (NEW, OLD)),
        (passed(NAME[:-1]), (OLD, NEW)),
        (passed(None, finished=True), (NEW, OLD)),
        (Reading(0.0, {partition_of(NAME) + 1: Cursor(None, finished=True)}), (OLD, NEW)),
    ],
)
def test_passed_name_has_its_new_home_first(reading: Reading, expected: tuple[str, str]) -> None:
    assert homes(PLACEMENT, NAME, reading) == expected
    assert homes(PLACEMENT, NAME.upper().replace("GITHUB.COM/A", "GitHub.com/a") + ".git", reading) == expected


def test_names_are_ordered_by_bytes() -> None:
    accented, plain = "gitlab.com/\u00e9", "gitlab.com/z"
    reading = Reading(0.0, {partition_of(accented): Cursor(order_key(plain), False)})
    assert reading.algorithm(accented) is Algorithm.MD5


def test_pinned_name_has_one_home() -> None:
    for reading in (NEVER, passed(None, finished=True)):
        assert homes(PLACEMENT, "GitHub.com/pinned/One", reading) == (NODES[2],)


@given(name=st.text(st.characters(codec="utf-8"), max_size=20), upto=st.none() | st.binary(), done=st.booleans())
def test_homes_are_always_both_homes_without_duplicates(name: str, upto: bytes | None, done: bool) -> None:
    reading = Reading(0.0, {partition_of(name): Cursor(upto, done)})
    both = {PLACEMENT.home(name, Algorithm.MD5), PLACEMENT.home(name, Algorithm.RENDEZVOUS)}
    found = homes(PLACEMENT, name, reading)
    assert set(found) == both
    assert len(found) == len(both)


class Table:
    """The table of the cursors, in memory; if set, `fault` is raised instead."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.cursors: Mapping[int, Cursor] = {}
        self.fault: Exception | None = None
        self.asked = 0
        self.open = 0
        self._changed = threading.Condition()

    def connect(self) -> Table:
        self.open += 1
        return self

    def ask(self) -> Mapping[int, Cursor]:
        with self._changed:
            self.asked += 1
            self._changed.notify_all()
            if self.fault is not None:
                raise self.fault
            return self.cursors

    def close(self) -> None:
        self.open -= 1

    def wait_until_read(self) -> None:
        """Wait until the current content was read by the router."""
        with self._changed:
            seen = self.asked
            assert self._changed.wait_for(lambda: self.asked >= seen + 2, timeout=180)

    def finish(self) -> None:
        self.cursors = {partition: Cursor(None, True) for partition in range(16)}


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def router(table: Table) -> Iterator[Router]:
    with Router("", gitserver(), connect=lambda _: table.connect(), clock=lambda: table.now) as opened:
        yield opened
    assert table.open == 0


def test_router_follows_the_cursors(router: Router, table: Table) -> None:
    assert (router.home(NAME), router.homes(NAME)) == (OLD, (OLD, NEW))
    table.finish()
    table.wait_until_read()
    assert (router.home(NAME), router.homes(NAME)) == (NEW, (NEW, OLD))
    table.cursors = {}
    table.wait_until_read()
    assert router.home(NAME) == OLD, "it went back"


@pytest.mark.parametrize("fault", [DatabaseUnavailable("it is away"), RuntimeError("a mistake")])
def test_router_uses_last_cursors_while_the_database_is_unavailable(
    router: Router, table: Table, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    table.finish()
    assert router.home(NAME) == NEW
    table.fault = fault
    table.wait_until_read()
    table.now += 30
    assert router.home(NAME) == NEW, "as old as half of grace_seconds"
    table.now += 1
    assert router.homes(NAME) == (NEW, OLD)
    with pytest.raises(CursorTooOld, match=f"last read 31 seconds ago: {fault.args[0]}"):
        router.home(NAME)
    table.fault = None
    table.wait_until_read()
    assert router.home(NAME) == NEW
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"], "once away, once back"


def test_router_has_both_homes_if_the_database_was_never_available(router: Router, table: Table) -> None:
    table.fault = DatabaseUnavailable("it is away")
    assert router.homes(NAME) == (OLD, NEW)
    with pytest.raises(CursorTooOld, match="were last read never: it is away"):
        router.home(NAME)


def test_reading_has_the_time_of_its_query(table: Table) -> None:
    """Not of its result, which may be out of date when it arrives."""

    class Slow(Table):
        def ask(self) -> Mapping[int, Cursor]:
            self.now += 31
            return super().ask()

    slow = Slow()
    with Router("", gitserver(), connect=lambda _: slow, clock=lambda: slow.now) as router, pytest.raises(CursorTooOld):
        router.home(NAME)


def test_closed_router_reads_again_only_on_lookup(router: Router, table: Table) -> None:
    router.home(NAME)
    router.close()
    assert table.open == 0
    assert router.home(NAME) == OLD
    assert table.open == 1


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    opened = database.connect()
    opened.execute(TABLE)
    return opened


def set_cursor(connection: psycopg.Connection[Any], name: str, upto: str | None, *, finished: bool = False) -> None:
    connection.execute(
        "INSERT INTO headrace.rehash_cursors VALUES (%s, %s, %s)"
        " ON CONFLICT (partition) DO UPDATE SET upto = excluded.upto, finished = excluded.finished",
        (partition_of(name), None if upto is None else normalised(upto), finished),
    )


@pytest.mark.stack
def test_router_reads_the_migrations_table(connection: psycopg.Connection[Any], database: Database) -> None:
    with Router(database.dsn, gitserver()) as router:
        assert router.homes(NAME) == (OLD, NEW)
        set_cursor(connection, NAME, NAME)
        until(lambda: router.homes(NAME) == (NEW, OLD), "the cursor passed")
        set_cursor(connection, NAME, None)
        until(lambda: router.homes(NAME) == (OLD, NEW), "it went back")
        set_cursor(connection, NAME, None, finished=True)
        until(lambda: router.homes(NAME) == (NEW, OLD), "the partition is finished")


@pytest.mark.stack
def test_no_name_is_passed_before_the_table_exists(database: Database) -> None:
    with Router(database.dsn, gitserver()) as router:
        assert router.home(NAME) == OLD
        connection = database.connect()
        connection.execute(TABLE)
        set_cursor(connection, NAME, NAME)
        until(lambda: router.home(NAME) == NEW, "the cursor passed")


@pytest.mark.stack
def test_names_have_the_same_order_in_python_and_postgresql(connection: psycopg.Connection[Any]) -> None:
    names = ["b", "B", "a/b", "a-b", "a.b", "\u00e9", "z", "\U0001f600", "\uffee", "a", "a b", "", "github.com/\u00c4"]
    found = connection.execute('SELECT name FROM unnest(%s::text[]) AS name ORDER BY name COLLATE "C"', (names,))
    assert [name for (name,) in found] == sorted(names, key=str.encode)
    assert [normalised(name) for name in names] == [normalised(normalised(name)) for name in names]


@pytest.mark.stack
def test_lookups_cause_one_query(connection: psycopg.Connection[Any], database: Database) -> None:
    connection.execute(
        "ALTER TABLE headrace.rehash_cursors RENAME TO cursors; CREATE SEQUENCE headrace.queries;"
        " CREATE VIEW headrace.rehash_cursors AS"
        " WITH seen AS MATERIALIZED (SELECT nextval('headrace.queries') AS number)"
        " SELECT c.* FROM headrace.cursors c CROSS JOIN seen WHERE number > 0"
    )
    connection.execute("INSERT INTO headrace.cursors VALUES (%s, NULL, true)", (partition_of(NAME),))

    patient = gitserver().model_copy(update={"refresh_seconds": 3600.0, "grace_seconds": 14400.0})
    with Router(database.dsn, patient) as router, ThreadPoolExecutor(16) as threads:
        found = set(threads.map(lambda _: (router.home(NAME), router.homes(NAME)), range(2000)))
    assert found == {(NEW, (NEW, OLD))}
    assert connection.execute("SELECT last_value FROM headrace.queries").fetchone() == (1,)


@pytest.fixture
def reader(connection: psycopg.Connection[Any], database: Database) -> Iterator[str]:
    """The dsn of a role with only the privileges that docs/how-to/routing.md lists."""
    role = f"reader_{database.name}"
    name = sql.Identifier(role)
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'reads'").format(name))
    (grants,) = re.findall(r"`(GRANT .*)`", GUIDE.read_text(encoding="utf-8"))
    connection.execute(grants.replace("TO reader;", f"TO {role};"))
    yield make_conninfo(database.dsn, user=role, password="reads")
    connection.execute(sql.SQL("DROP OWNED BY {}; DROP ROLE {}").format(name, name))


@pytest.mark.stack
def test_documented_grant_suffices_for_a_reader(connection: psycopg.Connection[Any], reader: str) -> None:
    set_cursor(connection, NAME, NAME)
    with Router(reader, gitserver()) as router:
        assert router.home(NAME) == NEW


@pytest.mark.stack
def test_reader_without_the_privilege_gets_an_error(
    connection: psycopg.Connection[Any], reader: str, caplog: pytest.LogCaptureFixture
) -> None:
    role = sql.Identifier(str(conninfo_to_dict(reader)["user"]))
    connection.execute(sql.SQL("REVOKE SELECT ON headrace.rehash_cursors FROM {}").format(role))
    with Router(reader, gitserver()) as router:
        assert router.homes(NAME) == (OLD, NEW)
        with pytest.raises(CursorTooOld, match="permission denied for table rehash_cursors; grant it"):
            router.home(NAME)
    assert "permission denied" in caplog.text
    assert "reads" not in caplog.text


@pytest.mark.stack
def test_router_survives_database_downtime(
    connection: psycopg.Connection[Any],
    database: Database,
    reader: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    role = sql.Identifier(str(conninfo_to_dict(reader)["user"]))
    set_cursor(connection, NAME, NAME)
    with Router(reader, gitserver()) as router:
        assert router.home(NAME) == NEW
        connection.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT 0").format(role))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'headrace routing'"
            " AND datname = current_database()"
        )
        until(lambda: "routing uses old cursors" in caplog.text, "it noticed")
        assert router.homes(NAME) == (NEW, OLD)
        set_cursor(connection, NAME, None)
        connection.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT -1").format(role))
        until(lambda: router.homes(NAME) == (OLD, NEW), "it is back")


def test_standby_is_refused() -> None:
    directory = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    directory.chmod(0o711)  # the server's own user passes through when the tests run as root
    with closing(Keeper(remove=directory)) as keeper:
        primary = EmbeddedPostgres(directory / "primary", keeper, fsync=False)
        primary.start()
        standby = primary.standby("standby")
        with Router(standby.dsn(), gitserver()) as router:
            assert router.homes(NAME) == (OLD, NEW)
            with pytest.raises(CursorTooOld, match="is a standby, whose cursors may be out of date"):
                router.home(NAME)
        standby.abandon()
        primary.abandon()


@pytest.mark.stack
def test_example_of_the_guide_runs(
    connection: psycopg.Connection[Any], database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "headrace.toml").write_text(
        f'[databases.gitserver]\ndsn = "{database.dsn}"\ngitlab_schemas = ["gitserver"]\n'
        '[gitserver]\nnodes = ["a", "b"]\n'
    )
    monkeypatch.chdir(tmp_path)
    ran: dict[str, Any] = {}
    exec(example, ran)
    assert ran["node"] in ("a", "b")


FORKED = """
import os, sys
from consumers.routing import lookup
from consumers.routing.lookup import Router
from tests.consumers.routing.test_lookup import NAME, gitserver

lookup._PATIENCE_SECONDS = 120.0
router = Router(sys.argv[1], gitserver())
before = router.home(NAME)
print("ready", flush=True)
sys.stdin.readline()
child = os.fork()
if child == 0:
    os._exit(0 if router.home(NAME) != before else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.stack
def test_forked_process_reads_its_own_cursors(connection: psycopg.Connection[Any], database: Database) -> None:
    """Many web servers fork their workers."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKED, database.dsn],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        set_cursor(connection, NAME, NAME)
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(180) == 0
