"""Counts the statements that a client sends to PostgreSQL, as a witness between the two, and keeps them apart."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_COUNTED = (b"Q", b"E")
"""A query of the simple protocol, and an execution of the extended one: each is one round trip of a statement."""


class Counted:
    """The statements of all connections through a proxy."""

    def __init__(self) -> None:
        self.statements = 0
        self.connections = 0
        self._away = threading.Event()
        self._open: list[socket.socket] = []

    def leave(self) -> None:
        """End all connections, and refuse others."""
        self._away.set()
        while self._open:
            with contextlib.suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Connect again."""
        self._away.clear()

    def admits(self, client: socket.socket) -> bool:
        """Return whether the server may be reached, and know the connection."""
        self.connections += 1
        self._open.append(client)
        return not self._away.is_set()


@contextmanager
def counting(dsn: str) -> Iterator[tuple[str, Counted]]:
    """Provide a connection string that leads to the same server through a proxy, and what it counts."""
    parts = conninfo_to_dict(dsn)
    server = (str(parts["host"]), int(parts.get("port") or 5432))
    counted = Counted()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, server, counted), daemon=True).start()
        through = {
            "host": "127.0.0.1",
            "port": listener.getsockname()[1],
            "sslmode": "disable",
            "gssencmode": "disable",
        }
        yield make_conninfo(dsn, **through), counted
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, server: tuple[str, int], counted: Counted) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            if not counted.admits(client):
                client.close()
                continue
            upstream = socket.create_connection(server)
            threading.Thread(target=_requests, args=(client, upstream, counted), daemon=True).start()
            threading.Thread(target=_answers, args=(upstream, client), daemon=True).start()


def _requests(client: socket.socket, upstream: socket.socket, counted: Counted) -> None:
    with client, upstream, client.makefile("rb") as stream, contextlib.suppress(OSError, struct.error):
        # The first message has no type.
        kind = b""
        while True:
            length = stream.read(4)
            body = stream.read(struct.unpack("!I", length)[0] - 4)
            if kind in _COUNTED:
                counted.statements += 1
            upstream.sendall(kind + length + body)
            if not (kind := stream.read(1)):
                return


def _answers(upstream: socket.socket, client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := upstream.recv(65536):
            client.sendall(chunk)
        client.shutdown(socket.SHUT_RDWR)
