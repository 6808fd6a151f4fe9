"""No command hangs on a database that accepts everything and answers nothing: its process gets SIGSTOP."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it ships no types
import psycopg
import pytest

from consumers.testing.waiting import PATIENCE, until
from tests.conftest import Database
from tests.consumers.conftest import Member
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill, states, written
from tests.consumers.members.freezing import backends
from tests.consumers.services import ROOT

pytestmark = pytest.mark.stack


Stop = Callable[[int], None]


@pytest.fixture
def hang(connection: psycopg.Connection[Any]) -> Iterator[Stop]:
    """A function that stops a process of the server; all continue after the test."""
    stopped: list[int] = []

    def stop(pid: int) -> None:
        if not psutil.pid_exists(pid) or "postgres" not in psutil.Process(pid).name():
            pytest.skip("the server's processes are not this machine's")
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)

    yield stop
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def ended(process: Member) -> tuple[int, str]:
    """Stop a process by one signal; return its exit code and output."""
    process.send_signal(signal.SIGTERM)
    _, problems = process.communicate(timeout=PATIENCE)
    return process.returncode, problems


@pytest.mark.long
def test_idle_consumer_exits_at_first_signal(
    feed: Feed,
    connection: psycopg.Connection[Any],
    members: Callable[..., Member],
    hang: Stop,
) -> None:
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    member = members()
    until(lambda: written(connection) == [1], "the row is reset")
    (pid,) = backends(connection)
    hang(pid)
    code, problems = ended(member)
    assert code == 0, problems
    assert "Traceback" not in problems


@pytest.mark.long
def test_consumer_in_transaction_exits_at_first_signal_and_loses_nothing(
    feed: Feed,
    connection: psycopg.Connection[Any],
    database: Database,
    members: Callable[..., Member],
    hang: Stop,
) -> None:
    rows = dict.fromkeys(range(40), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    locking = database.connect()  # pg_stat_activity is cached within a transaction
    with locking.transaction():
        locking.execute("LOCK container_repositories IN SHARE MODE")
        member = members()
        waiting = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'UPDATE public.container%' AND state = 'active'"
        until(lambda: connection.execute(waiting).fetchone(), "it waits for the lock")
        row = connection.execute(waiting).fetchone()
        assert row is not None
        hang(row[0])
        code, problems = ended(member)
    assert code == 0, problems
    os.kill(row[0], signal.SIGCONT)
    last = members(until_caught_up=True)
    _, problems = last.communicate(timeout=PATIENCE)
    assert last.returncode == 0, problems
    assert {state for state, _ in states(connection).values()} == {"default"}
    assert sorted(written(connection)) == list(rows)


def test_second_signal_ends_consumer_immediately(
    feed: Feed,
    connection: psycopg.Connection[Any],
    members: Callable[..., Member],
    hang: Stop,
) -> None:
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    member = members()
    until(lambda: written(connection) == [1], "the row is reset")
    (pid,) = backends(connection)
    hang(pid)
    member.send_signal(signal.SIGINT)

    def interrupted_again() -> bool:  # two signals that are pending at once are one
        member.send_signal(signal.SIGINT)
        return member.poll() is not None

    until(interrupted_again, "the consumer exits")
    assert member.returncode in (-signal.SIGINT, 128 + signal.SIGINT)


def test_finalize_exits_at_first_signal(
    feed: Feed, connection: psycopg.Connection[Any], config: Path, hang: Stop
) -> None:
    fill(connection, {1: TOO_MANY_TAGS, 2: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", "finalize", "skip_resets", "--config", str(config)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: written(connection) == [1], "the row is reset")
        (pid,) = backends(connection)
        hang(pid)
        code, problems = ended(process)
    finally:
        process.kill()
        process.communicate()
    assert code == 1, problems
    assert "Traceback" not in problems
