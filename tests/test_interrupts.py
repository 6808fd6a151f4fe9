"""Ctrl-C ends every command although its servers do not answer: one line, no traceback, nothing left running."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumers.testing.waiting import until
from infra.service.interrupts import STOPPED, STUCK
from tests.shells import Ended, Shell
from tests.waiting_commands import WAITING, configure

KAFKA_FIRST = ["check", "init --acls --apply", "produce main", "schema-registry --listen 127.0.0.1:0", "status"]
"""Those that ask Kafka before PostgreSQL."""


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that accepts connections, and never sends anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield server


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port without a listener, reserved during the test."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def interrupted(shell: Shell, process: subprocess.Popen[str], number: signal.Signals) -> Ended:
    """Send the signal and return how the process ended; the deadline only ends a test whose command hangs."""
    process.send_signal(number)
    ended = shell.end(process)
    assert "Traceback" not in ended.err, ended.err
    return ended


def lines(ended: Ended) -> list[str]:
    """Return the lines that are not of the log."""
    return [line for line in ended.err.splitlines() if not line.startswith("{")]


@pytest.mark.long
@pytest.mark.parametrize("words", WAITING)
def test_ctrl_c_ends_command_whose_server_accepts_and_says_nothing(
    shell: Shell, silent: socket.socket, words: str
) -> None:
    configure(shell, silent.getsockname()[1])
    process = shell.start(*words.split())
    accepted, _ = silent.accept()
    with accepted:
        ended = interrupted(shell, process, signal.SIGINT)
    expect(words, ended)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux, to see that the client is loaded")
@pytest.mark.parametrize("words", KAFKA_FIRST)
def test_ctrl_c_ends_command_that_finds_no_listener(shell: Shell, closed_port: int, words: str) -> None:
    """PostgreSQL's client reports that at once; Kafka's waits for a broker."""
    configure(shell, closed_port)
    process = shell.start(*words.split())
    tasks = Path(f"/proc/{process.pid}/task")

    def client_runs() -> bool:
        names = []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread may end between its look-ups
            names += [(task / "comm").read_text() for task in tasks.iterdir()]
        return process.poll() is not None or any(name.startswith("rdk:") for name in names)

    until(client_runs, "Kafka's client runs")
    expect(words, interrupted(shell, process, signal.SIGINT))


@pytest.mark.parametrize("words", ["consume skip_resets", "produce main", "status", "verify skip_resets"])
def test_sigterm_ends_command_whose_server_says_nothing(shell: Shell, silent: socket.socket, words: str) -> None:
    configure(shell, silent.getsockname()[1])
    process = shell.start(*words.split())
    accepted, _ = silent.accept()
    with accepted:
        ended = interrupted(shell, process, signal.SIGTERM)
    assert (ended.code, lines(ended)) in [(-signal.SIGTERM, []), (0, []), (0, [STUCK]), (1, [STUCK])]


REPLACING = """
import os, signal, time
import headrace

def run() -> int:
    try:
        os.kill(os.getpid(), signal.{number})
        time.sleep(0.1)
    except KeyboardInterrupt:
        pass
    raise {error}

headrace._run = run
headrace.main()
"""


@pytest.mark.parametrize("error", ["ValueError()", "TypeError()", "SystemError()", "OSError(5, 'Input/output error')"])
def test_error_in_place_of_an_interrupt_is_one(error: str) -> None:
    """As a library in C raises it where KeyboardInterrupt meets it."""
    for number, code in (("SIGINT", 130), ("SIGCHLD", 1)):
        program = REPLACING.format(number=number, error=error)
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (ended.returncode, "Traceback" in ended.stderr) == (code, code == 1), ended.stderr
        assert (ended.stderr.splitlines() == [STOPPED]) is (code == 130)


def expect(words: str, ended: Ended) -> None:
    """Compare the end with the design: 130 and a line; a service 0; what was to be finished first, 1 and why."""
    service = words in ("produce main", "status --watch")
    allowed = [(130, [STOPPED]), (1, [STUCK]), *([(0, []), (0, [STUCK])] if service else [])]
    said = lines(ended)
    stopped = ended.code == 1 and len(said) == 1 and "start it again to continue" in said[0]
    assert (ended.code, said) in allowed or stopped, ended
