"""Reads COPY … TO STDOUT up to a limit of bytes; if `Lines.whole` is false, another query has to read the rest.

Reads an unencrypted connection's socket directly: libpq keeps memory for the longest line, and needs three times its
size while it is read. Between two queries such a connection has no hidden state: a query may bypass libpq as long as
every message up to ReadyForQuery is read from the socket. If that fails, the connection is closed. An encrypted one is
read through libpq, in C: psycopg creates an object per line, which costs more than encoding it.

Source: PostgreSQL 18, "Message Formats" and "Message Flow", sections "Simple Query" and "COPY Operations".
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg import pq

from infra.postgres import libpq
from schemas.codec import implementation
from schemas.lazy_dataclass import dataclass

_READ_BYTES: Final = 1 << 20
_PASSED_OVER: Final = frozenset(b"HcCNSA")
"""CopyOutResponse, CopyDone, CommandComplete, and asynchronous messages: Notice, ParameterStatus (a reload changes no
parameter that the session has set) and Notification."""
_NO_BOUND: Final = 1 << 62
_END: Final = 0
_WAIT: Final = -2
_LOST: Final = -3
"""What `libpq_lines` of schemas/codec/_compiled.pyi returns as what comes next."""
_WAIT_MS: Final = 500
"""Input is then asked for again: OpenSSL may have read from the socket what libpq did not take of it yet."""

_head = struct.Struct("!cI")


@dataclass(frozen=True)
class Lines:
    """Joined lines of COPY's text format, and their number; not `whole` if a limit of bytes left out others."""

    data: bytes
    rows: int
    whole: bool = True

    def last(self, places: Sequence[int]) -> list[bytes]:
        """Return the raw fields at `places` of the last line, without copying the others, however large."""
        fields: dict[int, bytes] = {}
        start = self.data.rfind(b"\n", 0, -1) + 1
        for place in range(max(places) + 1):
            end = self.data.find(b"\t", start)
            if place in places:
                fields[place] = self.data[start : end if end >= 0 else -1]
            start = end + 1
        return [fields[place] for place in places]


class LineTooLong(Exception):
    """The first line to read has `size` bytes, more than allowed."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def copy_lines(
    connection: psycopg.Connection[Any], query: bytes, *, most: int = _NO_BOUND, longest: int = _NO_BOUND
) -> Lines:
    """Run a COPY and return its first lines, at most `most` bytes in total but at least one line, then cancel it.

    A line may have at most `longest` bytes: raises LineTooLong if the first has more; the lines end before a later one
    that does. Raises psycopg's error for one of the server, with the connection ready for the next query (as in any
    failed transaction), and OperationalError if the connection was lost.
    """
    how = copy_out if possible(connection.pgconn) else through_libpq
    return how(connection.pgconn, query, most, longest, connection.cancel_safe)


def possible(pgconn: pq.abc.PGconn) -> bool:
    """Return whether `copy_out` can be used: with the compiled codec and an unencrypted connection."""
    idle = pgconn.transaction_status in (pq.TransactionStatus.IDLE, pq.TransactionStatus.INTRANS)
    return implementation.compiled is not None and idle and not pgconn.ssl_in_use and not pgconn.used_gssapi


def copy_out(
    pgconn: pq.abc.PGconn,
    query: bytes,
    most: int = _NO_BOUND,
    longest: int = _NO_BOUND,
    cancel: Callable[[], None] = lambda: None,
) -> Lines:
    """Implement `copy_lines` without libpq: at most one line beyond the limits is in memory."""
    taken = _Taken(most, longest, cancel)
    refusal = None
    unread = bytearray()
    try:
        # libpq needs the descriptor non-blocking: with a timeout Python leaves it so.
        with socket.socket(fileno=os.dup(pgconn.socket)) as wire:
            wire.settimeout(3600)
            wire.sendall(_head.pack(b"Q", len(query) + 5) + query + b"\0")
            while True:
                taken.take(unread)
                if taken.ended is not None and _line(unread):
                    _drop(wire, unread)
                    continue
                message = _message(unread)
                if message is None:
                    unread += _receive(wire)
                    continue
                kind, body = message
                del unread[: len(body) + 5]
                if kind == b"Z":
                    break
                if kind == b"E":
                    refusal = _refusal(body)
                elif kind[0] not in _PASSED_OVER:
                    raise psycopg.OperationalError(f"the server sent an unexpected message during COPY: {kind!r}")
        if unread:
            raise psycopg.OperationalError("the server sent data after the end of a COPY")
    except BaseException as error:
        # Unread messages would be taken for the response to the next query.
        pgconn.finish()
        if isinstance(error, OSError):
            raise psycopg.OperationalError(f"the connection was lost during COPY: {error}") from error
        raise
    if refusal is not None and taken.ended is None:
        raise refusal
    return taken.lines


class _Taken:
    """The lines taken so far; `ended` is the size of the first one not taken."""

    def __init__(self, most: int, longest: int, cancel: Callable[[], None]) -> None:
        self.ended: int | None = None
        self.rows = 0
        self.longest = longest
        self._most, self._cancel = most, cancel
        self._parts: list[bytes | memoryview] = []
        self._size = 0

    @property
    def room(self) -> int:
        """How many bytes of lines may be added; -1: none, they have ended."""
        return max(0, self._most - self._size) if self.ended is None else -1

    def take(self, unread: bytearray) -> None:
        """Take the complete lines at the start of a buffer of messages."""
        if self.ended is not None:
            return
        while True:
            room = self.room if self.rows else max(self._most, _line(unread))
            with memoryview(unread) as view, view[: room + _head.size] as within:
                data, rows, used = implementation.compiled.copy_data(within)
            if not rows:
                break
            self.add(data, rows)
            del unread[:used]
        self.judge(_line(unread))

    def add(self, data: bytes | memoryview, rows: int = 1) -> None:
        """Take lines."""
        self._parts.append(data)
        self.rows += rows
        self._size += len(data)

    def judge(self, line: int) -> None:
        """End before the next line, of `line` bytes, if it exceeds a limit; 0: there is none."""
        if line > self.longest or (line and self.rows and self._size + line > self._most):
            self.ended = line
            # If the server accepts no other connection, the rest arrives and is dropped: the same result, later.
            with contextlib.suppress(psycopg.Error):
                self._cancel()

    @property
    def lines(self) -> Lines:
        """The result; raises LineTooLong if not even the first line was taken."""
        if self.ended is not None and not self.rows:
            raise LineTooLong(self.ended)
        return Lines(b"".join(self._parts), self.rows, self.ended is None)


def through_libpq(
    pgconn: pq.abc.PGconn,
    query: bytes,
    most: int = _NO_BOUND,
    longest: int = _NO_BOUND,
    cancel: Callable[[], None] = lambda: None,
    *,
    compiled: bool = True,
) -> Lines:
    """Implement `copy_lines` by libpq, which keeps memory for the longest line.

    Its lines are taken in C if that can be, unless `compiled` is false, for who compares. psycopg's own copy costs
    several times as much per row as either.
    """
    result = pgconn.exec_(query)
    if result.status != pq.ExecStatus.COPY_OUT:
        raise psycopg.errors.error_from_result(result)
    taken = _Taken(most, longest, cancel)
    library = libpq.loaded(pgconn) if compiled and implementation.compiled is not None else None
    try:
        if library is None:
            _take_each(pgconn, taken)
        else:
            _take_blocks(pgconn, library, taken)
    except BaseException:
        # The lines that are left would be taken for the response to the next query.
        pgconn.finish()
        raise
    end = pgconn.get_result()
    while pgconn.get_result() is not None:
        pass
    if end is None or pgconn.status != pq.ConnStatus.OK:
        raise psycopg.OperationalError("the connection was lost during COPY")
    if end.status != pq.ExecStatus.COMMAND_OK and taken.ended is None:
        raise psycopg.errors.error_from_result(end)
    return taken.lines


def _take_each(pgconn: pq.abc.PGconn, taken: _Taken) -> None:
    """Take all lines one by one, as psycopg returns them."""
    readable = _readable(pgconn)
    consumed = False
    while True:
        length, line = pgconn.get_copy_data(1)
        if length < 0:
            return
        if length == 0:
            if consumed:
                readable.poll(_WAIT_MS)
            pgconn.consume_input()
        elif taken.ended is None:
            taken.judge(length)
            if taken.ended is None:
                taken.add(line)
        consumed = length == 0


def _take_blocks(pgconn: pq.abc.PGconn, library: libpq.Libpq, taken: _Taken) -> None:
    """Take all lines in C, a block at a time."""
    readable = _readable(pgconn)
    while True:
        some = taken.rows > 0
        data, rows, left = implementation.compiled.libpq_lines(*library, taken.room, taken.longest, some)
        if rows:
            taken.add(data, rows)
        if left == _END:
            return
        if left == _LOST:
            raise psycopg.OperationalError("the connection was lost during COPY")
        if left == _WAIT:
            readable.poll(_WAIT_MS)
        elif left > 0:
            taken.judge(left)


def _readable(pgconn: pq.abc.PGconn) -> select.poll:
    """Return what waits for the server: psycopg would block other threads and the handlers of signals meanwhile."""
    readable = select.poll()
    readable.register(pgconn.socket, select.POLLIN)
    return readable


def _line(unread: bytearray) -> int:
    """Return the size of the line at the start of the buffer, 0 for any other message."""
    if len(unread) < _head.size or unread[0] != 0x64:  # d
        return 0
    return max(0, int.from_bytes(unread[1:5]) - 4)


def _drop(wire: socket.socket, unread: bytearray) -> None:
    """Discard the line at the start of the buffer, and the rest of it from the socket."""
    left = _line(unread) + _head.size
    while left > len(unread):
        left -= len(unread)
        unread[:] = _receive(wire)
    del unread[:left]


def _receive(wire: socket.socket) -> bytes:
    while True:
        try:
            received = wire.recv(_READ_BYTES)
        except TimeoutError:
            continue  # a query has no time limit
        if not received:
            raise psycopg.OperationalError("the connection was lost during COPY")
        return received


def _message(data: bytearray) -> tuple[bytes, bytes] | None:
    """Return the type and body of a complete message other than a line of COPY; None if more must be read."""
    if len(data) < _head.size:
        return None
    kind, length = _head.unpack_from(data)
    if length < 4:
        raise psycopg.OperationalError("the server sent a message without a length during COPY")
    if kind == b"d" or len(data) < length + 1:
        return None
    return kind, bytes(data[_head.size : length + 1])


def _refusal(body: bytes) -> psycopg.Error:
    """Return psycopg's error for an ErrorResponse, without the details, which may contain a row's values."""
    fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
    try:
        kind = psycopg.errors.lookup(fields.get(b"C", ""))
    except KeyError:
        kind = psycopg.DatabaseError
    error = kind(fields.get(b"M", ""))
    error.sqlstate = fields.get(b"C") or error.sqlstate
    return error
