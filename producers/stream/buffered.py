"""Takes the frames of a replication stream that libpq has received: in C if that can be, else by psycopg."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from psycopg import pq

from infra.postgres import libpq
from producers.stream.frames import XLogData, parse
from schemas.codec import implementation
from schemas.positions import Lsn


class Buffered(NamedTuple):
    """Messages of the output plugin: the data of consecutive XLogData frames."""

    messages: list[bytes]
    end: Lsn
    """The last frame's; 0 without messages."""
    used: int
    """Bytes of the frames, and of `other`."""
    size: int
    """What PQgetCopyData returned last: 0, nothing else was received; -1, the stream ended; -2, it failed."""
    other: bytes | None
    """The frame that follows if it is of another type."""


Take = Callable[[int, int], Buffered]
"""Takes at most so many messages, and of about so many bytes; waits for nothing."""


def taking(connection: pq.abc.PGconn) -> Take:
    """Return what takes the connection's frames, until that is finished. Raises psycopg.OperationalError."""
    library = libpq.loaded(connection) if implementation.compiled is not None else None
    if library is None:
        return partial(take_one, connection)
    take = implementation.compiled.libpq_messages
    return lambda most, room: Buffered(*take(*library, most, room))


def take_one(connection: pq.abc.PGconn, *_limits: int) -> Buffered:
    """Take a single frame, as psycopg returns it; it is within any limits."""
    size, view = connection.get_copy_data(1)
    if size <= 0:
        return Buffered([], Lsn(0), 0, size, None)
    frame = parse(view)
    if isinstance(frame, XLogData):
        return Buffered([frame.data], frame.end, size, size, None)
    return Buffered([], Lsn(0), size, size, bytes(view))
