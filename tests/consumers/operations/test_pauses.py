"""Pausing and resuming from any machine; after pausing no transaction of the migration is in progress."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from consumers.ledger import fence
from consumers.ledger.progress import Ledger
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.cleanup import stale_records
from consumers.operations.group_admin import members as group_members
from consumers.operations.pauses import Locked, StillUnderWay, is_paused, set_paused
from consumers.operations.replay import replay
from consumers.operations.status import gather
from consumers.runtime.assembly import consumer_of
from consumers.runtime.totals import Totals
from consumers.testing.waiting import PATIENCE, until
from infra.postgres.control import OtherPrefix
from infra.settings.model import Settings
from schemas.errors import OwnershipMoved
from schemas.topics import group_name
from tests.conftest import Database
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill, write_settings, written
from tests.consumers.services import advisory_lock_is_waited_for

pytestmark = pytest.mark.stack


def test_pause_and_resume_are_idempotent_and_need_no_run(
    settings: Settings, connection: psycopg.Connection[Any]
) -> None:
    assert not is_paused(settings, SkipResets, "main")
    for wanted in (True, True, False, False, True):
        set_paused(settings, SkipResets, "main", wanted)
        assert is_paused(settings, SkipResets, "main") is wanted
    assert connection.execute("SELECT count(*), max(run) FROM headrace.migrations").fetchone() == (1, 1)


def test_pause_returns_after_transactions_in_progress_ended(
    settings: Settings, database: Database, connection: psycopg.Connection[Any]
) -> None:
    set_paused(settings, SkipResets, "main", False)
    run = Ledger("skip_resets", "gitlab_main", "test").begin(connection)
    looking = database.connect()
    with ThreadPoolExecutor(1) as pool:
        with connection.transaction(), connection.cursor() as cursor:
            fence.hold(cursor, migration="skip_resets", run=run, gitlab_schema="gitlab_main", database="main")
            pausing = pool.submit(set_paused, settings, SkipResets, "main", True, seconds=PATIENCE)
            until(lambda: advisory_lock_is_waited_for(looking), "pausing waits for the transaction")
            assert is_paused(settings, SkipResets, "main"), "no new transaction may begin"
            assert not pausing.done()
        pausing.result()
    with pytest.raises(fence.Paused), connection.transaction(), connection.cursor() as cursor:
        fence.hold(cursor, migration="skip_resets", run=run, gitlab_schema="gitlab_main", database="main")


def test_pause_reports_long_transaction_and_stays_in_force(
    settings: Settings, database: Database, connection: psycopg.Connection[Any]
) -> None:
    set_paused(settings, SkipResets, "main", False)
    run = Ledger("skip_resets", "gitlab_main", "test").begin(connection)
    connection.execute("SET application_name = 'headrace consume skip_resets'")
    with connection.transaction(), connection.cursor() as cursor:
        fence.hold(cursor, migration="skip_resets", run=run, gitlab_schema="gitlab_main", database="main")
        pid = connection.info.backend_pid
        with pytest.raises(StillUnderWay, match=f"headrace consume skip_resets \\(process {pid}, since 2"):
            set_paused(settings, SkipResets, "main", True, seconds=0.2)
        other = database.connect()
        with pytest.raises(fence.Paused), other.transaction(), other.cursor() as late:
            fence.hold(late, migration="skip_resets", run=run, gitlab_schema="gitlab_main", database="main")


def test_pause_times_out_on_locked_row(
    settings: Settings, database: Database, connection: psycopg.Connection[Any]
) -> None:
    set_paused(settings, SkipResets, "main", False)
    with connection.transaction():
        connection.execute("UPDATE headrace.migrations SET completed_at = now()")
        with pytest.raises(Locked, match="cannot pause skip_resets: another session holds a lock on its row"):
            set_paused(settings, SkipResets, "main", True, seconds=0.2)
    assert not is_paused(settings, SkipResets, "main")


def test_pause_is_not_starved_by_ten_busy_consumers(
    settings: Settings, database: Database, connection: psycopg.Connection[Any]
) -> None:
    """It took 52 seconds with four of them while the fence was a row lock."""
    set_paused(settings, SkipResets, "main", False)
    run = Ledger("skip_resets", "gitlab_main", "test").begin(connection)
    all_at_work = threading.Barrier(11)

    def consume(number: int) -> None:
        own, done = database.connect(), 0
        while True:
            try:
                with own.transaction(), own.cursor() as cursor:
                    fence.hold(cursor, migration="skip_resets", run=run, gitlab_schema="gitlab_main", database="main")
                    if done == 0:
                        all_at_work.wait()
                    cursor.execute("SELECT pg_sleep(%s)", (0.1 + number / 100,))
                done += 1
            except fence.Paused:
                return

    with ThreadPoolExecutor(10) as pool:
        consumers = [pool.submit(consume, number) for number in range(10)]
        all_at_work.wait()
        # The requirement is two seconds; a transaction in progress takes a fifth of one.
        set_paused(settings, SkipResets, "main", True, seconds=2.0)
        for consumer in consumers:
            consumer.result()


def test_paused_consumer_ends_when_its_gitlab_schema_has_moved(
    settings: Settings, feed: Feed, connection: psycopg.Connection[Any]
) -> None:
    """The new owner has its own row of the migration, which this consumer does not read."""
    set_paused(settings, SkipResets, "main", True)
    work, stopping = SkipResets.configure(settings.migration("skip_resets")), threading.Event()
    member = consumer_of(settings, work, "main", stopping=stopping)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(member.run)
        try:
            until(lambda: group_members(settings.kafka, group_name(settings.prefix, "skip_resets")), "it is there")
            connection.execute("UPDATE headrace.schema_ownership SET owner = 'ci', epoch = 2")
            with pytest.raises(OwnershipMoved, match="gitlab_main is owned by ci, not by main"):
                working.result(PATIENCE)
        finally:
            stopping.set()


class Machine:
    """Its own directory, home and settings; only the addresses of the servers are shared."""

    def __init__(self, place: Path, prefix: str, bootstrap_servers: str, dsn: str) -> None:
        place.mkdir()
        self.place = place
        write_settings(
            place / "headrace.toml",
            {
                "prefix": prefix,
                "kafka": {"bootstrap_servers": bootstrap_servers},
                "databases": {"main": {"dsn": dsn, "gitlab_schemas": ["gitlab_main"]}},
            },
        )
        self.logs: list[Path] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        self.environment = {**kept, "HOME": str(place), "TMPDIR": str(place)}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a service; its log is the next of `logs`."""
        self.logs.append(self.place / f"{len(self.logs)}.log")
        with self.logs[-1].open("wb") as log:
            return subprocess.Popen(
                self._command(arguments), cwd=self.place, env=self.environment, stdout=subprocess.DEVNULL, stderr=log
            )

    def run(self, *arguments: str) -> str:
        """Run a command to its end; return what it printed."""
        done = subprocess.run(
            self._command(arguments),
            cwd=self.place,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "headrace", *arguments]

    def all_said(self, words: str) -> bool:
        """Whether these words are in the log of every service."""
        return all(words in log.read_text() for log in self.logs)


@pytest.fixture
def machines(bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path) -> tuple[Machine, Machine]:
    """Two machines; the second spells the same addresses differently."""
    parts = conninfo_to_dict(database.dsn)
    words = f"host=localhost port={parts['port']} dbname={parts['dbname']} user={parts['user']}"
    spelt = f"{words} password={parts['password']}"
    return (
        Machine(tmp_path / "first", prefix, bootstrap_servers, database.dsn),
        Machine(tmp_path / "second", prefix, bootstrap_servers.replace("127.0.0.1", "localhost"), spelt),
    )


@pytest.mark.long
def test_services_are_paused_and_resumed_from_another_machine(
    machines: tuple[Machine, Machine],
    feed: Feed,
    connection: psycopg.Connection[Any],
    settings: Settings,
) -> None:
    first, second = machines
    group = group_name(settings.prefix, "skip_resets")
    fill(connection, dict.fromkeys(range(100), TOO_MANY_TAGS))
    feed.snapshot(dict.fromkeys(range(50), TOO_MANY_TAGS))
    services = [first.start("consume", "skip_resets") for _ in range(2)]
    try:
        until(lambda: len(written(connection)) == 50, "the services work")
        until(lambda: len(group_members(settings.kafka, group)) == 2, "both are members")
        assert "skip_resets is paused" in second.run("pause", "skip_resets")
        # From here on nothing is written, regardless of events: a consumer would have to take the fence first.
        feed.snapshot(dict.fromkeys(range(50, 100), TOO_MANY_TAGS))
        status = second.run("status", "--json")
        assert '"state": "paused"' in status
        until(lambda: first.all_said('"migration paused"'), "both are paused")
        assert len(group_members(settings.kafka, group)) == 2, "they stay in the group"
        assert len(written(connection)) == 50
        assert "skip_resets is resumed" in second.run("resume", "skip_resets")
        until(lambda: sorted(written(connection)) == list(range(100)), "they continue, each row once")
        assert [service.poll() for service in services] == [None, None], "the same processes as before"
    finally:
        for service in services:
            service.send_signal(signal.SIGTERM)
        for service in services:
            service.wait(PATIENCE)
    assert first.all_said('"migration resumed"')


def test_other_prefix_on_the_same_database_is_refused(
    settings: Settings, feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Totals]
) -> None:
    """Formerly it reported 'already complete', and was paused by the other prefix's pause."""
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    other = settings.model_copy(update={"prefix": f"{settings.prefix}b"})
    assert catch_up().applied == 1
    for refused in (
        lambda: catch_up(other),
        lambda: set_paused(other, SkipResets, "main", True),
        lambda: is_paused(other, SkipResets, "main"),
        lambda: replay(other, SkipResets, "main"),
        lambda: stale_records(other, "main"),
    ):
        with pytest.raises(OtherPrefix, match=f"main is used with prefix {settings.prefix}, and the settings have"):
            refused()
    status = {each["name"]: each for each in gather(other)["migrations"]}["skip_resets"]
    assert f"is used with prefix {settings.prefix}" in status["error"]
    assert (status["state"], status["run"]) == ("waiting", 0)
    assert not is_paused(settings, SkipResets, "main")
    assert connection.execute("SELECT max(run) FROM headrace.migrations").fetchone() == (1,)
