"""Stopping by signal, with a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.service.signals import bounded, stop_on_signals
from schemas.errors import Interrupted
from tests.conftest import Database

# Never ends by itself, so that its end is the signal's doing. Says what it saw on its output, which the test reads.
SERVICE = """
import ctypes, signal, sys, threading
from infra.service.signals import stop_on_signals
handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
cancelled = threading.Event()
cut = threading.Event()
with stop_on_signals(overdue=cancelled.set, cut=cut.set, exit_code=7) as stop:
    if sys.argv[1] == "deaf":  # in a library that waits, and lets Python call no handler meanwhile
        mutex = ctypes.create_string_buffer(64)
        threads = ctypes.CDLL(None)
        threads.pthread_mutex_lock(mutex)
        print("ready", flush=True)
        threads.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    stop.wait()
    print("stopping", flush=True)
    if sys.argv[1] == "hang":
        threading.Event().wait()
    if sys.argv[1] == "cancel":
        cancelled.wait()
    if sys.argv[1] == "cut":
        cut.wait()
if cancelled.is_set():
    print("cancelled", flush=True)
print((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers, flush=True)
"""


def started(how: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_sets_the_event_and_the_process_ends_in_order(number: signal.Signals) -> None:
    with started("end") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=180)
    assert out.splitlines() == ["stopping", "True"], "the handlers of before are there again"
    assert err == ""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM), (signal.SIGINT,) * 2]
)
def test_the_second_signal_ends_it_at_once(first: signal.Signals, second: signal.Signals) -> None:
    with started("hang") as process:
        process.send_signal(first)
        assert process.stdout is not None
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(second)
        process.communicate(timeout=180)
    assert process.returncode == -second


@pytest.mark.parametrize("how", ["hang", "deaf"])
def test_work_that_never_ends_is_ended_with_the_process(how: str) -> None:
    with started(how) as process:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=180)
    assert process.returncode == 7
    assert err == "headrace: exited without waiting for a server that does not answer; nothing is lost\n"


def test_second_signal_ends_a_process_blocked_in_a_library() -> None:
    with started("deaf") as process:
        process.send_signal(signal.SIGTERM)

        def signalled_again() -> bool:  # two signals that are pending at once are one
            process.send_signal(signal.SIGTERM)
            return process.poll() is not None

        until(signalled_again, "the process ends")
    # The first may have come before the library was called: Python heard it then, and the kernel the second.
    assert process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)


@pytest.mark.parametrize(("how", "cancelled"), [("end", False), ("cancel", True), ("cut", True)])
def test_only_overdue_work_is_cancelled(how: str, cancelled: bool) -> None:
    with started(how) as process:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=180)
    assert out.splitlines() == ["stopping", *["cancelled"] * cancelled, "True"]
    assert err == ""


def test_an_event_of_the_caller_s_own_is_the_one_that_is_set() -> None:
    stop = threading.Event()
    with stop_on_signals(stop) as given:
        assert given is stop
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()


def fail(stop: threading.Event) -> None:
    assert not stop.is_set()
    raise ZeroDivisionError


def test_handlers_are_restored_when_the_work_fails() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), stop_on_signals() as stop:
        fail(stop)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


SLEEPS = "SELECT pg_sleep(3600)"


@pytest.mark.stack
def test_database_wait_is_cancelled_by_a_stop_and_by_a_deadline(database: Database) -> None:
    connection, stop = database.connect(), threading.Event()
    with pytest.raises(psycopg.errors.QueryCanceled), bounded(connection, stop, seconds=0.1):
        connection.execute(SLEEPS)
    looked = threading.Event()

    def look() -> None:
        looked.set()
        stop.set()
        raise psycopg.OperationalError("that it cannot be looked is no reason to wait longer, or shorter")

    with pytest.raises(Interrupted), bounded(connection, stop, meanwhile=look):
        connection.execute(SLEEPS)
    assert looked.is_set()
    assert connection.execute("SELECT 1").fetchone() == (1,), "the connection is as good as before"


@pytest.mark.stack
def test_later_queries_are_not_cancelled(database: Database) -> None:
    connection, stop = database.connect(), threading.Event()
    before = set(threading.enumerate())
    with bounded(connection, stop, seconds=60):
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert set(threading.enumerate()) <= before


@pytest.mark.stack
def test_cancel_by_another_session_is_an_ordinary_error(database: Database) -> None:
    connection = database.connect()
    connection.execute("SET statement_timeout = '10ms'")
    with pytest.raises(psycopg.errors.QueryCanceled), bounded(connection, threading.Event()):
        connection.execute(SLEEPS)
