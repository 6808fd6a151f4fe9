"""Sends requests to `headrace route --serve`: for any input, answers are complete and have only headrace's headers."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, Final

from consumers.routing.lookup import CursorTooOld
from consumers.routing.placement import Algorithm, Placement
from consumers.routing.route_server import _Answer
from tests.fuzz.parsers.target import Target, Violation

_NODES: Final = Placement(("a:1", "b:1"))
_HEADERS: Final = {b"server", b"date", b"content-type", b"content-length", b"cache-control", b"allow", b"connection"}


class _Routes:
    def homes(self, name: str) -> tuple[str, ...]:
        return tuple(_NODES.home(name, algorithm) for algorithm in Algorithm)

    def home(self, name: str) -> str:
        if len(name) % 3 == 0:
            raise CursorTooOld("the cursors are too old")
        return _NODES.home(name, Algorithm.MD5)


class _Server:
    """A server of one connection, which is never cut off."""

    routes = _Routes()

    def idle(self, connection: object) -> None:
        """See RouteServer.idle."""

    def asking(self, connection: object) -> None:
        """See RouteServer.asking."""

    def done(self, connection: object) -> None:
        """See RouteServer.done."""


class _Connection:
    """A socket whose client has sent everything, and collects the answers."""

    def __init__(self, sent: bytes) -> None:
        self._sent = sent
        self.answered = bytearray()

    def settimeout(self, seconds: float) -> None:
        """Do nothing: there is nothing to wait for."""

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Do nothing: there are no packets to delay."""

    def makefile(self, mode: str, size: int) -> io.BufferedReader:
        del mode, size
        return io.BufferedReader(io.BytesIO(self._sent))

    def sendall(self, data: bytes) -> None:
        self.answered += data


def _run(data: bytes) -> None:
    connection: Any = _Connection(data)
    server: Any = _Server()
    _Answer(connection, ("127.0.0.1", 1), server)
    _judge(data, bytes(connection.answered))


def _judge(sent: bytes, answered: bytes) -> None:
    answers = 0
    while answered.startswith(b"HTTP/"):
        head, separator, answered = answered.partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if not separator or headers.keys() - _HEADERS:
            raise Violation(f"an answer with headers that are not headrace's: {head!r}")
        if status.split(b" ")[1] == b"100":
            continue
        first = b"{" if headers[b"content-type"].startswith(b"application/json") else b"<"
        size = int(headers[b"content-length"])
        body, after = answered[:size], answered[size:]
        # An answer to HEAD has no body: what follows may be the next answer, also one as HTTP 0.9.
        if body.startswith(first) and (not after or after.startswith((b"HTTP/", b"{", b"<"))):
            answered = after
            if first == b"{":
                json.loads(body)
        answers += 1
    # If the HTTP version is unreadable it answers as HTTP 0.9: a body only, and nothing after it.
    if answered and not answered.startswith(b"{") and not answered.endswith(b"</html>\n"):
        raise Violation(f"an invalid answer: {answered[:80]!r}")
    if answers > sent.count(b"\n") + 1:
        raise Violation("more answers than requests")


def _seeds() -> Iterator[bytes]:
    tail = b"HTTP/1.1\r\nHost: a\r\n\r\n"
    yield b"GET /homes?name=github.com%2Fa%2Fb " + tail
    yield b"GET /homes?name=%ff " + tail + b"HEAD /homes?name=ab " + tail
    yield b"GET /homes?name=a&name=b " + tail
    yield b"GET /elsewhere " + tail
    yield b"POST /homes HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
    yield b"GET /homes?name=a HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\r\n"
    yield b"GET /homes?name=a\r\n"
    yield b"BREW /pot HTTP/9.9\r\n\r\n"


TARGET = Target(
    "requests over HTTP",
    _run,
    _seeds,
    dictionary=(
        b"GET ",
        b"HEAD ",
        b" HTTP/1.1\r\n",
        b"\r\n",
        b"name=",
        b"%00",
        b"%0d%0a",
        b"&",
        b"Connection: keep-alive\r\n",
        b"Expect: 100-continue\r\n",
    ),
)
