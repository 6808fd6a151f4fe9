"""Serves lookups of repositories over HTTP, for readers in languages without a router.

Read-only: it answers from a `Router`, and the database is queried once per `refresh_seconds`, regardless of the number
of requests.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit

from consumers.routing.lookup import CursorTooOld
from schemas.errors import SettingsError

_IDLE_SECONDS: Final = 60.0
_LONGEST_NAME: Final = 1 << 15


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server: of open connections, of which one more is closed at once, and in seconds."""

    connections: int = 256
    request_seconds: float = 10.0
    """For receiving a request and sending its response: a slow client would keep a thread."""
    making_room_seconds: float = 0.2


_USUAL: Final = Limits()


class Routes(Protocol):
    """The lookups that are served; implemented by `Router`."""

    def homes(self, name: str) -> tuple[str, ...]: ...
    def home(self, name: str) -> str: ...


class RouteServer(ThreadingHTTPServer):
    """Listens from its creation, and answers within `serve_forever`, with a thread per connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: str, port: int, routes: Routes, limits: Limits = _USUAL) -> None:
        """Raise SettingsError if it cannot listen on the address; `port` 0 chooses a free one."""
        self.routes = routes
        self._limits = limits
        self._free = threading.BoundedSemaphore(limits.connections)
        self._idle: dict[socket.socket, float] = {}
        self._asking: dict[socket.socket, float] = {}
        try:
            self.address_family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((address, port), _Answer)
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {address} port {port}: {error.strerror}",
                remedy="choose another with --address and --port",
            ) from error

    def server_bind(self) -> None:
        """Bind without http.server's DNS query for a name that is not used here. See socketserver."""
        TCPServer.server_bind(self)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a new thread, if the limit allows. See socketserver.BaseServer."""
        if self._free.acquire(blocking=False) or self._made_room():
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer all requests of a connection. See socketserver.ThreadingMixIn."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._idle.pop(request, None)
            self._free.release()

    def idle(self, connection: socket.socket) -> None:
        """Record that a connection is idle: the one that is idle for longest is closed for a new one."""
        self._asking.pop(connection, None)
        self._idle[connection] = time.monotonic()

    def asking(self, connection: socket.socket) -> None:
        """Record that a request begins to arrive; its connection is cut unless `done` is called in time."""
        self._idle.pop(connection, None)
        self._asking[connection] = time.monotonic() + self._limits.request_seconds

    def done(self, connection: socket.socket) -> None:
        """Record that a request was answered, or given up."""
        self._asking.pop(connection, None)

    def service_actions(self) -> None:
        """Cut connections whose request takes too long; called twice a second. See socketserver.BaseServer."""
        now = time.monotonic()
        for connection, until in list(self._asking.items()):
            if now > until:
                _cut(connection)

    def _made_room(self) -> bool:
        """Whether an idle connection was closed for another one."""
        longest = min(self._idle.items(), key=lambda each: each[1], default=None)
        if longest is None:
            return False
        self._idle.pop(longest[0], None)
        _cut(longest[0])
        return self._free.acquire(timeout=self._limits.making_room_seconds)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: a client that disconnects is not an error of the server."""


def _cut(connection: socket.socket) -> None:
    """Shut a connection down for reading and writing."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Answer(BaseHTTPRequestHandler):
    """The requests of one connection."""

    server: RouteServer
    protocol_version = "HTTP/1.1"
    server_version = "headrace"
    sys_version = ""
    timeout = _IDLE_SECONDS

    def handle_one_request(self) -> None:
        """Wait for a request, and answer it within the time limit; see http.server.BaseHTTPRequestHandler."""
        self.server.idle(self.connection)
        try:
            begins = self.rfile.peek(1)  # type: ignore[attr-defined]  # it is a BufferedReader
        except OSError:
            begins = b""
        if not begins:
            self.close_connection = True
            return
        self.server.asking(self.connection)
        try:
            super().handle_one_request()
        finally:
            self.server.done(self.connection)

    def do_GET(self) -> None:
        """Answer `/homes?name=…`."""
        url = urlsplit(self.path)
        if url.path != "/homes":
            self._say(HTTPStatus.NOT_FOUND, {"error": "ask /homes?name=NAME"})
            return
        try:
            asked = parse_qs(url.query, keep_blank_values=True, errors="strict", max_num_fields=2)
            (name,) = asked["name"]
            name.encode()
        except (KeyError, ValueError):
            self._say(HTTPStatus.BAD_REQUEST, {"error": "ask for one name, as percent-encoded UTF-8: /homes?name=NAME"})
            return
        if len(name) > _LONGEST_NAME:
            self._say(HTTPStatus.BAD_REQUEST, {"error": f"a name has at most {_LONGEST_NAME:,} characters"})
            return
        document: dict[str, Any] = {"name": name, "homes": self.server.routes.homes(name)}
        try:
            document["home"] = self.server.routes.home(name)
        except CursorTooOld as error:
            document |= {"home": None, "reason": str(error)}
        self._say(HTTPStatus.OK, document)

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.close_connection = True  # the request's body is not read
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, {"error": "this server supports only GET"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _say(self, status: HTTPStatus, document: dict[str, Any]) -> None:
        body = json.dumps(document, ensure_ascii=False).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *_: Any) -> None:
        """Log no request: names are data."""
