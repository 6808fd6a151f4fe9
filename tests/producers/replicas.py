"""Helpers for the tests of the stream: a table, a slot, and a decoding reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from consumers.testing.waiting import until
from producers.source import slots
from producers.stream import messages as m
from producers.stream.connection import ReplicationStream, StreamOptions
from producers.stream.frames import Keepalive, Received
from producers.stream.pgoutput import Decoder
from producers.stream.start_command import Streaming
from schemas.positions import Lsn, parse_lsn

PUBLICATION = "pub"


def emit_message(connection: psycopg.Connection[Any], prefix: str = "test", *, transactional: bool = True) -> Lsn:
    """Write a logical message that marks a place in the stream; return its LSN."""
    query = "SELECT pg_logical_emit_message(%s, %s, %s::text)::text"
    row = connection.execute(query, (transactional, prefix, "a mark")).fetchone()
    assert row is not None
    return parse_lsn(row[0])


def one_by_one(messages: Iterable[m.Message]) -> list[m.Message]:
    """Return the messages with each change on its own."""
    found: list[m.Message] = []
    for message in messages:
        if isinstance(message, m.Changes):
            found += map(message.change, range(len(message.payloads)))
        else:
            found.append(message)
    return found


class Reader:
    """A stream and its decoder; keeps the messages that it read."""

    def __init__(self, stream: ReplicationStream) -> None:
        self.stream = stream
        self.decoder = Decoder()
        self.messages: list[m.Message] = []
        self.keepalives: list[Keepalive] = []

    def until(self, enough: Callable[[], bool]) -> None:
        """Read until `enough` returns true."""
        until(enough, "messages", seen=lambda: self.messages[-5:], meanwhile=self._read)

    def _read(self) -> None:
        for frame in self.stream.read(1000, 0.2):
            self.take(frame)

    def take(self, frame: Received) -> None:
        if isinstance(frame, bytes):
            self.messages.append(self.decoder.decode(frame))
        else:
            self.keepalives.append(frame)

    def confirm_idle(self) -> bool:
        """Confirm the last keepalive, as a reader does once every change is safe."""
        if self.keepalives:
            self.stream.confirm(self.keepalives[-1].end)
        return True

    def until_mark(self, connection: psycopg.Connection[Any]) -> list[m.Message]:
        """Read up to a message that is written now; return everything before its transaction."""
        lsn = emit_message(connection)
        self.until(lambda: any(type(each) is m.LogicalMessage and each.lsn == lsn for each in self.messages))
        self.until(lambda: type(self.messages[-1]) is m.Commit)
        at = next(i for i, x in enumerate(self.messages) if type(x) is m.LogicalMessage and x.lsn == lsn)
        return self.messages[: at - 1]


def prepare(connection: psycopg.Connection[Any], slot: str, *, publish: str = "FOR ALL TABLES") -> Lsn:
    """Create the publication and the slot."""
    connection.execute(f"CREATE PUBLICATION {PUBLICATION} {publish}")
    return slots.create(connection, slot, failover=False)


@contextmanager
def reading(dsn: str, slot: str, start: Lsn, streaming: Streaming = Streaming.OFF, **options: Any) -> Iterator[Reader]:
    with ReplicationStream(dsn, slot, PUBLICATION, start, StreamOptions(streaming=streaming, **options)) as stream:
        yield Reader(stream)


def of(messages: list[m.Message], *kinds: type[m.Message]) -> list[Any]:
    """Return the messages of these kinds."""
    return [each for each in messages if type(each) in kinds]
