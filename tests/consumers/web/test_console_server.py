"""`headrace web` as a process: it says where it listens, serves while servers hang, and ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from consumers.web.watcher import Watcher
from tests.consumers.web.console import TOKEN, Client
from tests.shells import Shell
from tests.waiting_commands import configure


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that accepts connections, and never sends anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield server


def listening(process: subprocess.Popen[str]) -> Client:
    assert process.stderr is not None
    said = json.loads(process.stderr.readline())
    assert said["event"] == "listening"
    return Client(int(said["url"].rstrip("/").rpartition(":")[2]))


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_console_serves_while_its_servers_say_nothing_and_ends(
    shell: Shell, silent: socket.socket, number: signal.Signals
) -> None:
    configure(shell, silent.getsockname()[1])
    process = shell.start("web", "--listen", "127.0.0.1:0", HEADRACE_WEB__TOKENS__ALICE=TOKEN)
    console = listening(process)
    assert console.get("/").status == 200
    assert console.get("/api/session").document["operator"] == "alice"
    found = console.snapshot()
    assert found["problems"] == [
        "Kafka has not answered yet",
        "database main has not answered yet",
        "database other has not answered yet",
    ]
    assert {one["state"] for one in found["migrations"]} == {"waiting"}
    process.send_signal(number)
    ended = shell.end(process)
    assert (ended.code, ended.out) == (0, "")
    assert "Traceback" not in ended.err
    assert TOKEN not in ended.err


def test_console_on_a_port_in_use_is_refused(shell: Shell, silent: socket.socket) -> None:
    port = silent.getsockname()[1]
    configure(shell, port)
    line = shell.run("web", "--listen", f"127.0.0.1:{port}").error(2)
    assert f"cannot listen on 127.0.0.1 port {port}" in line
    assert "--listen" in line


def test_console_without_its_packages_names_the_extra(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else Watcher)
    line = shell.call("web").error(2)
    assert "the console is not installed (uvicorn)" in line
    assert "pip install 'headrace[web]'" in line
