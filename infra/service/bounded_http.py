"""A small HTTP server for JSON that limits connections and the time of each request: a client may be hostile."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final

from schemas.errors import SettingsError
from schemas.lazy_dataclass import dataclass

_IDLE_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Limits:
    """The limits of a server: of open connections, of which one more is closed at once, and in seconds."""

    connections: int = 256
    request_seconds: float = 10.0
    """For receiving a request and sending its response: a slow client would keep a thread."""
    making_room_seconds: float = 0.2


USUAL: Final = Limits()


class BoundedServer(ThreadingHTTPServer):
    """Listens from its creation, and answers within `serve_forever`, with a thread per connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self, address: str, port: int, answers: type[BoundedRequests], limits: Limits = USUAL, *, remedy: str
    ) -> None:
        """Raise SettingsError with `remedy` if it cannot listen on the address; `port` 0 chooses a free one."""
        self._limits = limits
        self._free = threading.BoundedSemaphore(limits.connections)
        self._idle: dict[socket.socket, float] = {}
        self._asking: dict[socket.socket, float] = {}
        try:
            self.address_family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((address, port), answers)
        except OSError as error:
            raise SettingsError(f"cannot listen on {address} port {port}: {error.strerror}", remedy=remedy) from error

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


class BoundedRequests(BaseHTTPRequestHandler):
    """The requests of one connection; a subclass answers them with `say`."""

    server: BoundedServer
    protocol_version = "HTTP/1.1"
    server_version = "headrace"
    sys_version = ""
    timeout = _IDLE_SECONDS
    # On a kept connection a body would wait for the acknowledgement of its headers, which clients delay by 40 ms.
    disable_nagle_algorithm = True

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

    def say(
        self,
        status: HTTPStatus,
        document: Any,
        *,
        content_type: str = "application/json; charset=utf-8",
        allow: str = "",
    ) -> None:
        """Send a document as JSON; `allow` lists the methods for METHOD_NOT_ALLOWED."""
        body = json.dumps(document).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if allow:
            self.send_header("Allow", allow)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *_: Any) -> None:
        """Log no request: names are data."""
