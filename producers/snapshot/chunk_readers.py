"""Reads chunks over several connections at the same time, each in a thread of its own.

A thread waits for the server without Python's lock, as the encoder encodes; a process would have to send every row to
the one that publishes it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from typing import Any, Final, Generic, TypeVar

import psycopg

from infra.service.signals import bounded, shut_down
from producers.snapshot.reader import CHUNKS_EACH, ChunkRows
from producers.snapshot.resnapshot_rules import Texts
from schemas.lazy_dataclass import dataclass

_LOCKED_SECONDS: Final = 1.0
"""How long a thread waits for room between finding out a chunk's end and reading its rows."""
_LEAVE_SECONDS: Final = 1.0
"""How long `close` waits for a thread; one that is still connecting ends later."""

T = TypeVar("T")
Read = Callable[[psycopg.Connection[Any], Callable[[Texts | None], object], Texts | None], ChunkRows | None]
"""Reads a chunk over a connection; calls its second argument as read_chunk calls `planned`.

With a third argument it reads no further than that key. It may be called again after its second argument has raised.
"""


@dataclass(frozen=True)
class Planned:
    """A read that continues up to and including a key, and not to the end of its bounds."""

    upto: Texts


@dataclass(frozen=True)
class Ended:
    """A read that returned `chunk`, or raised `error`; it holds room for so many bytes until `settled`."""

    chunk: ChunkRows | None = None
    error: BaseException | None = None
    held: int = 0

    def result(self) -> ChunkRows | None:
        """Return what the read returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self.chunk


class _Closed(Exception):
    """The readers were closed before the rows were read."""


class _NoRoom(Exception):
    """There was no room for a chunk's rows in time; `upto` is how far it was to be read."""

    def __init__(self, upto: Texts | None) -> None:
        super().__init__(upto)
        self.upto = upto


class _Room:
    """The bytes that chunks in progress may have together; waits until others have left."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._changed = threading.Condition()
        self._closed = False

    def take(self, size: int, seconds: float | None = None) -> bool:
        """Wait for room, at most so many seconds; return whether it was taken. Raises _Closed."""
        with self._changed:
            there = self._changed.wait_for(lambda: self._closed or self._left >= size, seconds)
            if self._closed:
                raise _Closed
            if there:
                self._left -= size
            return there

    def give(self, size: int) -> None:
        """Return room; a negative size is taken without waiting."""
        with self._changed:
            self._left += size
            self._changed.notify_all()

    def close(self) -> None:
        """End every wait, with _Closed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class ChunkReaders(Generic[T]):
    """At most `count` threads; each opens its connection by `connect` at its first read and keeps it until `close`.

    At most CHUNKS_EACH chunks for each thread are being read or have been read and are not `settled`, of `most` bytes
    each; fewer if one has more, since it is a single large row. A thread with another one finds out the chunk's end
    meanwhile, which costs round trips to the server, and waits before its rows: for a second at most, since it has the
    table's lock, for which an ALTER TABLE would wait, and everybody behind that. Later it begins again.

    Queries are cancelled once `stop` is set. For the use of one thread.
    """

    def __init__(
        self, count: int, connect: Callable[[], psycopg.Connection[Any]], stop: threading.Event, most: int
    ) -> None:
        self._count = count
        self._connect = connect
        self._stop = stop
        self._most = most
        self._busy = 0
        self._unsettled = 0
        self._room = _Room(CHUNKS_EACH * count * most)
        self._threads: list[threading.Thread] = []
        self._connections: list[psycopg.Connection[Any]] = []
        self._reads: queue.SimpleQueue[tuple[T, Read] | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[tuple[T, Planned | Ended]] = queue.SimpleQueue()

    @property
    def idle(self) -> bool:
        """Whether another read may begin now, or be the next of a thread."""
        return self._busy < CHUNKS_EACH * self._count

    @property
    def busy(self) -> bool:
        """Whether `news` has not returned the end of every read."""
        return self._busy > 0

    def begin(self, task: T, read: Read) -> None:
        """Begin a read; `news` returns its progress with `task`."""
        self._busy += 1
        if len(self._threads) < min(self._busy, self._count):
            name = f"chunk reader {len(self._threads) + 1}"
            self._threads.append(threading.Thread(target=self._serve, name=name, daemon=True))
            self._threads[-1].start()
        self._reads.put((task, read))

    def news(self, seconds: float) -> list[tuple[T, Planned | Ended]]:
        """Return what happened since the last call, in order; waits for it, at most `seconds`."""
        found: list[tuple[T, Planned | Ended]] = []
        with suppress(queue.Empty):
            found.append(self._news.get(timeout=seconds))
            while True:
                found.append(self._news.get_nowait())
        ended = [what for _, what in found if isinstance(what, Ended)]
        self._busy -= len(ended)
        self._unsettled += sum(what.held for what in ended)
        return found

    def settled(self) -> None:
        """Note that no chunk that `news` has returned will be read again: as many others may be read."""
        if self._unsettled:
            self._room.give(self._unsettled)
        self._unsettled = 0

    def close(self) -> None:
        """End the threads and close their connections, whatever they read."""
        self._room.close()
        for _ in self._threads:
            self._reads.put(None)
        if self.busy:
            for connection in self._connections:
                shut_down(connection)
        for thread in self._threads:
            thread.join(_LEAVE_SECONDS)

    def _read(self, connection: psycopg.Connection[Any], task: T, read: Read) -> Ended:
        held = 0

        def planned(upto: Texts | None) -> None:
            nonlocal held
            if upto is not None:
                self._news.put((task, Planned(upto)))
            if not held:
                if not self._room.take(self._most, _LOCKED_SECONDS):
                    raise _NoRoom(upto)
                held = self._most

        try:
            try:
                chunk = read(connection, planned, None)
            except _NoRoom as none:
                self._room.take(self._most)
                held = self._most
                chunk = read(connection, planned, none.upto)
        except BaseException as error:
            return Ended(error=error, held=held)
        if chunk is not None and 0 < held < len(chunk.data):
            self._room.give(held - len(chunk.data))
            held = len(chunk.data)
        return Ended(chunk, held=held)

    def _serve(self) -> None:
        with ExitStack() as opened:
            connection: psycopg.Connection[Any] | None = None
            while (given := self._reads.get()) is not None:
                task, read = given
                try:
                    if connection is None:
                        connection = opened.enter_context(closing(self._connect()))
                        self._connections.append(connection)
                        opened.enter_context(bounded(connection, self._stop))
                    ended = self._read(connection, task, read)
                except BaseException as error:
                    ended = Ended(error=error)
                self._news.put((task, ended))
                del ended  # its rows would stay in memory until the next read has ended
