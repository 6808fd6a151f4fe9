"""COPY … TO STDOUT over libpq's own socket: libpq makes an object of each line, which costs more than encoding it.

Between two queries an unencrypted connection has no secrets: a query may be spoken past libpq, as long as every message
up to ReadyForQuery is taken from the socket. Where that fails, the connection is finished, never left in the middle.

Source: PostgreSQL 18, "Message Formats" and "Message Flow", sections "Simple Query" and "COPY Operations".
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

import psycopg
from psycopg import pq

from schemas import codec

_READ_BYTES: Final = 1 << 20
_PASSED_OVER: Final = frozenset(b"HcCNSA")
"""CopyOutResponse, CopyDone, CommandComplete, and what a server may say at any time: Notice, ParameterStatus (a reload
changes none that a session has set) and Notification."""

_head = struct.Struct("!cI")


def possible(pgconn: pq.abc.PGconn) -> bool:
    """Whether `copy_out` can be asked: there is a compiled codec to split messages, and the connection is plain."""
    idle = pgconn.transaction_status in (pq.TransactionStatus.IDLE, pq.TransactionStatus.INTRANS)
    return codec.compiled is not None and idle and not pgconn.ssl_in_use and not pgconn.used_gssapi


def copy_out(pgconn: pq.abc.PGconn, query: bytes) -> tuple[bytes, int]:
    """Run a COPY; return its lines, joined, and their number.

    Raises psycopg's error for what the server says, with the connection ready for the next query (as in any failed
    transaction), and OperationalError when the connection was lost.
    """
    lines: list[bytes] = []
    rows = 0
    refusal = None
    unread = bytearray()
    try:
        # The descriptor's own flags are libpq's, which needs it non-blocking: with a timeout Python leaves it so.
        with socket.socket(fileno=os.dup(pgconn.socket)) as wire:
            wire.settimeout(3600)
            wire.sendall(_head.pack(b"Q", len(query) + 5) + query + b"\0")
            while True:
                data, count, used = codec.compiled.copy_data(unread)
                if count:
                    lines.append(data)
                    rows += count
                    del unread[:used]
                message = _message(unread)
                if message is None:
                    received = _receive(wire)
                    if not received:
                        raise psycopg.OperationalError("the connection was lost in a COPY")
                    unread += received
                    continue
                kind, body = message
                del unread[: len(body) + 5]
                if kind == b"Z":
                    break
                if kind == b"E":
                    refusal = _refusal(body)
                elif kind[0] not in _PASSED_OVER:
                    raise psycopg.OperationalError(f"the server answered a COPY with a message {kind!r}")
        if unread:
            raise psycopg.OperationalError("the server went on behind the end of a COPY")
    except BaseException as error:
        # What is still to come would be taken for the answer to the next query.
        pgconn.finish()
        if isinstance(error, OSError):
            raise psycopg.OperationalError(f"the connection was lost in a COPY: {error}") from error
        raise
    if refusal is not None:
        raise refusal
    return b"".join(lines), rows


def _receive(wire: socket.socket) -> bytes:
    while True:
        try:
            return wire.recv(_READ_BYTES)
        except TimeoutError:
            continue  # a query may take as long as it likes


def _message(data: bytearray) -> tuple[bytes, bytes] | None:
    """Return the type and body of a message that is whole, and no line of COPY; None when more has to be read."""
    if len(data) < _head.size:
        return None
    kind, length = _head.unpack_from(data)
    if length < 4:
        raise psycopg.OperationalError("the server answered a COPY with a message of no length")
    if kind == b"d" or len(data) < length + 1:
        return None
    return kind, bytes(data[_head.size : length + 1])


def _refusal(body: bytes) -> psycopg.Error:
    """Return psycopg's error for the fields of an ErrorResponse."""
    fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
    try:
        kind = psycopg.errors.lookup(fields.get(b"C", ""))
    except KeyError:
        kind = psycopg.DatabaseError
    return kind(": ".join(fields[name] for name in (b"M", b"D") if name in fields))
