"""Lookups over HTTP: read-only, answered by a router."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest

from consumers.routing.lookup import CursorTooOld
from consumers.routing.route_server import RouteServer
from consumers.testing.waiting import until
from infra.service.bounded_http import Limits
from schemas.errors import SettingsError


class Known:
    """Fixed routes; `sure` is False while the cursors are too old for a new clone."""

    sure = True

    def homes(self, name: str) -> tuple[str, ...]:
        return ("old:1", "new:1") if name.startswith("github.com") else ("old:1",)

    def home(self, name: str) -> str:
        if not self.sure:
            raise CursorTooOld("the cursors of rehash_moves were last read never: no response")
        return self.homes(name)[0]


@pytest.fixture
def known() -> Known:
    return Known()


@pytest.fixture
def server(known: Known) -> Iterator[RouteServer]:
    with RouteServer("127.0.0.1", 0, known) as made:
        answering = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        answering.start()
        yield made
        made.shutdown()
        answering.join()


def ask(server: RouteServer, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as client:
        client.request(method, path, body)
        answer = client.getresponse()
        text = answer.read()
        assert answer.getheader("Content-Type") == "application/json; charset=utf-8"
        return answer.status, json.loads(text) if text else None


def test_response_has_the_nodes_in_order(server: RouteServer) -> None:
    name = "github.com/\u00d6/a b"
    assert ask(server, "/homes?name=github.com%2F%C3%96%2Fa+b") == (
        200,
        {"name": name, "homes": ["old:1", "new:1"], "home": "old:1"},
    )
    assert ask(server, "/homes?name=") == (200, {"name": "", "homes": ["old:1"], "home": "old:1"})


def test_response_has_no_home_while_the_cursors_are_too_old(server: RouteServer, known: Known) -> None:
    known.sure = False
    status, document = ask(server, "/homes?name=github.com/a/b")
    assert (status, document["homes"], document["home"]) == (200, ["old:1", "new:1"], None)
    assert "were last read never" in document["reason"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 404),
        ("/homes/", 404),
        ("/homes", 400),
        ("/homes?repo=a", 400),
        ("/homes?name=a&name=b", 400),
        ("/homes?name=a&b=c&d=e", 400),
        ("/homes?name=%ff", 400),
        (f"/homes?name={'a' * 40_000}", 400),
    ],
)
def test_invalid_request_gets_an_error(server: RouteServer, path: str, status: int) -> None:
    found, document = ask(server, path)
    assert found == status
    assert document["error"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_server_supports_only_get(server: RouteServer, method: str) -> None:
    assert ask(server, "/homes?name=a", method, b"x" * 1000) == (405, {"error": "this server supports only GET"})


def test_head_response_has_no_body(server: RouteServer) -> None:
    assert ask(server, "/homes?name=a", "HEAD") == (200, None)


def test_concurrent_and_repeated_requests_are_answered(server: RouteServer) -> None:
    def several(number: int) -> set[str]:
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as client:
            found = set()
            for each in range(20):
                client.request("GET", f"/homes?name=github.com/{number}/{each}")
                found.add(json.loads(client.getresponse().read())["home"])
            return found

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(several, range(16))) == [{"old:1"}] * 16


@contextmanager
def answering(known: Known, limits: Limits) -> Iterator[RouteServer]:
    with RouteServer("127.0.0.1", 0, known, limits) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def begun(server: RouteServer) -> socket.socket:
    """Return a connection whose request never arrives completely."""
    opened = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    opened.sendall(b"GET /homes?name=a HTTP/1.1\r\n")
    until(lambda: server._asking, "the request has begun")
    return opened


def test_connection_over_the_limit_is_closed(known: Known) -> None:
    with answering(known, Limits(connections=1)) as server, closing(begun(server)) as first:
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            ask(server, "/homes?name=a")
        first.sendall(b"\r\n")
        assert first.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_idle_connection_is_closed_for_a_new_one(known: Known) -> None:
    limits = Limits(connections=1, making_room_seconds=120.0)
    with answering(known, limits) as server, closing(http.client.HTTPConnection("127.0.0.1", server.port)) as first:
        first.request("GET", "/homes?name=a")
        first.getresponse().read()
        until(lambda: server._idle, "the connection is idle")
        assert ask(server, "/homes?name=a")[0] == 200


def test_slow_request_is_cut(known: Known) -> None:
    with answering(known, Limits(request_seconds=0.1)) as server, closing(begun(server)) as slow:
        assert slow.recv(1) == b"", "cut, and not answered"


def test_port_in_use_is_an_error(server: RouteServer, known: Known) -> None:
    with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1 port {server.port}: .* --address and --"):
        RouteServer("127.0.0.1", server.port, known)
