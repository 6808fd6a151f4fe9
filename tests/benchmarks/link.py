"""A TCP proxy that is a network: each connection has a bandwidth, and what the server sends arrives later."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import socket
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Final

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_PROCESSES: Final = multiprocessing.get_context("spawn")
_PIECE: Final = 64 << 10
_UNDER_WAY: Final = 16
"""Pieces of a connection that are under way; then the server waits."""


class Link:
    """Forwards to a server: `bytes_per_second` for each connection, `seconds` later."""

    def __init__(self, server: tuple[str, int], *, bytes_per_second: float, seconds: float) -> None:
        self._server = server
        self._rate = bytes_per_second
        self._seconds = seconds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def accept(self) -> None:
        """Forward every connection that comes, until the process ends."""
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(self._server)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pieces: queue.Queue[tuple[float, bytes]] = queue.Queue(_UNDER_WAY)
            for target, arguments in (
                (_forward, (near, far)),
                (_receive, (far, pieces, self._seconds)),
                (_deliver, (near, pieces, self._rate)),
            ):
                threading.Thread(target=target, args=arguments, daemon=True).start()


def _forward(near: socket.socket, far: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := near.recv(_PIECE):
            far.sendall(data)
    with contextlib.suppress(OSError):
        far.shutdown(socket.SHUT_WR)


def _receive(far: socket.socket, pieces: queue.Queue[tuple[float, bytes]], seconds: float) -> None:
    data = b"begin"
    while data:
        try:
            data = far.recv(_PIECE)
        except OSError:
            data = b""
        pieces.put((time.monotonic() + seconds, data))


def _deliver(near: socket.socket, pieces: queue.Queue[tuple[float, bytes]], rate: float) -> None:
    free = 0.0
    while True:
        arrives, data = pieces.get()
        free = max(free, arrives) + len(data) / rate
        time.sleep(max(0.0, free - time.monotonic()))
        with contextlib.suppress(OSError):
            if not data:
                near.shutdown(socket.SHUT_RDWR)
                return
            near.sendall(data)


@contextlib.contextmanager
def linked(dsn: str, *, bytes_per_second: float, seconds: float) -> Iterator[str]:
    """Yield a dsn that leads to the same server through a link, without TLS.

    The link is a process: what a benchmark does meanwhile would make it slower.
    """
    parts = conninfo_to_dict(dsn)
    server = str(parts["host"]), int(parts.get("port") or 5432)
    ours, theirs = _PROCESSES.Pipe()
    process = _PROCESSES.Process(target=_serve, args=(theirs, server, bytes_per_second, seconds), daemon=True)
    process.start()
    try:
        yield make_conninfo(dsn, host="127.0.0.1", port=ours.recv())
    finally:
        process.terminate()
        process.join()


def _serve(told: Connection, server: tuple[str, int], bytes_per_second: float, seconds: float) -> None:
    link = Link(server, bytes_per_second=bytes_per_second, seconds=seconds)
    told.send(link.port)
    link.accept()
