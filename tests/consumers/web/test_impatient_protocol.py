"""Clients that send or read too slowly are disconnected; one whose request takes long is not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from consumers.testing.waiting import PATIENCE, until
from consumers.web import impatient_protocol
from consumers.web.observation import Observation
from infra.settings.model import Settings
from tests.consumers.web.console import TOKEN, Client, running

NOWHERE = Settings.model_validate({"kafka": {"bootstrap_servers": "127.0.0.1:1"}})
Connect = Callable[[], socket.socket]


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A console of little patience."""
    monkeypatch.setattr(impatient_protocol, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(impatient_protocol, "_LOOK_SECONDS", 0.1)
    with running(NOWHERE) as client:
        yield client


@pytest.fixture
def connect(console: Client) -> Iterator[Connect]:
    """A function that connects to it, with a small buffer for what it receives."""
    with ExitStack() as opened:

        def connected() -> socket.socket:
            client = opened.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", console.port))
            return client

        yield connected


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: local",
        b"POST /api/migrations/a/pause HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer " + TOKEN.encode() + b"\r\nContent-Length: 100\r\n\r\n{",
    ],
    ids=["nothing", "part of a head", "part of a body"],
)
def test_client_that_does_not_finish_its_request_is_disconnected(connect: Connect, begun: bytes) -> None:
    client = connect()
    client.sendall(begun)
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1000) == b""


def test_client_that_sends_byte_by_byte_is_disconnected(connect: Connect) -> None:
    client, tick = connect(), threading.Event()

    def send_slowly() -> None:
        for byte in get("/" + "x" * 200):
            client.sendall(bytes([byte]))
            tick.wait(0.05)

    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        send_slowly()


def test_client_that_does_not_read_is_disconnected(connect: Connect) -> None:
    client = connect()
    client.setblocking(False)
    left = b""

    def disconnected() -> bool:
        nonlocal left
        left = left or get("/static/main.js") * 100
        try:
            left = left[client.send(left) :]
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    until(disconnected, "it is disconnected")


def test_client_that_asks_now_and_then_stays_connected(connect: Connect) -> None:
    client, tick = connect(), threading.Event()
    for _ in range(12):
        client.sendall(get("/static/icon.svg"))
        text = b""
        while b"</svg>" not in text:
            chunk = client.recv(10_000)
            assert chunk, "disconnected"
            text += chunk
        tick.wait(0.2)


def test_client_whose_request_takes_long_is_answered(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = threading.Event()

    def slowly(_observation: Observation) -> bytes:
        tick.wait(2)
        return b"{}"

    monkeypatch.setattr(Observation, "snapshot", slowly)
    client = connect()
    client.sendall(get("/api/snapshot"))
    assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
