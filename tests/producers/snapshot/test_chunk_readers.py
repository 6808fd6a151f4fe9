"""Reads that run at the same time, each over a connection of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from consumers.testing.waiting import PATIENCE, until
from producers.snapshot import chunk_readers
from producers.snapshot.chunk_readers import ChunkReaders, Ended, Planned, Read
from producers.snapshot.reader import ChunkRows
from schemas.positions import Lsn
from schemas.xid_snapshot import Moment, Snapshot
from tests.producers.captures import RELATION

CHUNK = ChunkRows(b"1\n", 1, RELATION, Moment(Snapshot(5, 5), Lsn(100)))
MOST = 10
LARGE = replace(CHUNK, data=b"x" * 4 * MOST)


class Wire:
    """A connection whose server never answers; `pgconn.socket` is what shutting it down needs."""

    def __init__(self) -> None:
        self.here, self.there = socket.socketpair()
        self.socket = self.here.fileno()
        self.closed = False
        self.cancelled = threading.Event()

    pgconn = property(lambda self: self)

    def cancel_safe(self, **_: float) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.closed = True
        self.here.close()
        self.there.close()


class Opened:
    """Opens such connections, or fails."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        self.error: Exception | None = None

    def __call__(self) -> Any:
        if self.error is not None:
            raise self.error
        self.wires.append(Wire())
        return self.wires[-1]


@pytest.fixture
def opened() -> Opened:
    return Opened()


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def readers(opened: Opened, stop: threading.Event) -> Iterator[ChunkReaders[str]]:
    made: ChunkReaders[str] = ChunkReaders(2, opened, stop, MOST)
    yield made
    made.close()


def at_once(_connection: Any, _planned: Callable[[Any], object], _last: Any) -> ChunkRows | None:
    return CHUNK


def ended(readers: ChunkReaders[str], count: int = 1) -> dict[str, Ended]:
    """Return the reads that end next."""
    found: dict[str, Ended] = {}

    def come() -> bool:
        found.update({task: what for task, what in readers.news(0.05) if isinstance(what, Ended)})
        return len(found) >= count

    until(come, "reads to end")
    return found


def test_two_chunks_are_read_at_the_same_time(readers: ChunkReaders[str], opened: Opened) -> None:
    both = threading.Barrier(2)

    def read(_connection: Any, _planned: Callable[[Any], object], _last: Any) -> ChunkRows:
        both.wait(PATIENCE)
        return CHUNK

    readers.begin("a", read)
    assert readers.idle
    readers.begin("b", read)
    assert {task: what.result() for task, what in ended(readers, 2).items()} == {"a": CHUNK, "b": CHUNK}
    assert readers.idle
    assert not readers.busy
    assert len(opened.wires) == 2


def test_each_thread_has_a_read_in_progress_and_a_next_one(readers: ChunkReaders[str], opened: Opened) -> None:
    proceed = threading.Event()

    def read(_connection: Any, _planned: Callable[[Any], object], _last: Any) -> ChunkRows:
        proceed.wait(PATIENCE)
        return CHUNK

    for name in "abcd":
        assert readers.idle
        readers.begin(name, read)
    assert not readers.idle
    until(lambda: len(opened.wires) == 2, "both threads to read")
    proceed.set()
    assert ended(readers, 4).keys() == set("abcd")
    assert readers.idle


def test_connection_is_used_again(readers: ChunkReaders[str], opened: Opened) -> None:
    for _ in range(3):
        readers.begin("a", at_once)
        ended(readers)
    assert len(opened.wires) == 1


def test_end_of_a_chunk_is_known_while_it_is_read(readers: ChunkReaders[str]) -> None:
    proceed = threading.Event()

    def read(_connection: Any, planned: Callable[[Any], object], _last: Any) -> ChunkRows:
        planned(("7",))
        proceed.wait(PATIENCE)
        return CHUNK

    readers.begin("a", read)
    assert readers.news(PATIENCE) == [("a", Planned(("7",)))]
    assert readers.busy
    proceed.set()
    assert ended(readers)["a"].chunk is CHUNK


class Reads:
    """Reads that note in `rows` that they have come to their rows."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def of(self, name: str, chunk: ChunkRows = CHUNK) -> Read:
        def read(_connection: Any, planned: Callable[[Any], object], _last: Any) -> ChunkRows:
            planned((name,))
            self.rows.append(name)
            return chunk

        return read


def planned_next(readers: ChunkReaders[str], names: str) -> None:
    """Wait until the ends of these reads are known, and of no other read anything."""
    known: set[str] = set()

    def come() -> bool:
        for task, what in readers.news(0.05):
            assert isinstance(what, Planned)
            known.add(task)
        return known == set(names)

    until(come, "the ends of the chunks")


def test_each_thread_has_two_chunks_that_are_not_settled_and_no_more(readers: ChunkReaders[str]) -> None:
    reads = Reads()
    for name in "abcd":
        readers.begin(name, reads.of(name))
    ended(readers, 4)
    for name in "ef":
        readers.begin(name, reads.of(name))
    planned_next(readers, "ef")
    assert sorted(reads.rows) == list("abcd"), "rows were read that a kill would have read again"
    readers.settled()
    assert ended(readers, 2).keys() == {"e", "f"}
    readers.settled()
    readers.settled()
    readers.begin("g", reads.of("g"))
    assert ended(readers).keys() == {"g"}


def test_read_without_room_ends_after_a_while_and_begins_again_no_further_once_there_is_some(
    opened: Opened, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_readers, "_LOCKED_SECONDS", 0.01)
    readers: ChunkReaders[str] = ChunkReaders(1, opened, stop, MOST)
    reads, began, unlocked = Reads(), list[Any](), threading.Event()

    def read(_connection: Any, planned: Callable[[Any], object], last: Any) -> ChunkRows:
        began.append(last)
        try:
            planned(("c",))
        except Exception:
            unlocked.set()
            raise
        return CHUNK

    for name in "ab":
        readers.begin(name, reads.of(name))
    ended(readers, 2)
    readers.begin("c", read)
    until(unlocked.is_set, "the table to be unlocked")
    planned_next(readers, "c")
    assert began == [None], "it waits without the table's lock"
    readers.settled()
    assert ended(readers).keys() == {"c"}
    assert began == [None, ("c",)]
    readers.settled()
    for name in "de":
        readers.begin(name, reads.of(name))
    assert ended(readers, 2).keys() == {"d", "e"}, "its room was not returned"
    readers.close()


def test_no_other_chunk_is_in_memory_with_a_large_row(opened: Opened, stop: threading.Event) -> None:
    readers: ChunkReaders[str] = ChunkReaders(1, opened, stop, MOST)
    reads = Reads()
    readers.begin("a", reads.of("a", LARGE))
    ended(readers)
    readers.begin("b", reads.of("b"))
    planned_next(readers, "b")
    assert reads.rows == ["a"]
    readers.settled()
    assert ended(readers).keys() == {"b"}
    readers.close()


def test_read_that_failed_before_its_rows_leaves_the_turn_to_others(readers: ChunkReaders[str]) -> None:
    def fails(_connection: Any, _planned: Callable[[Any], object], _last: Any) -> ChunkRows:
        raise RuntimeError("no")

    reads = Reads()
    for _ in range(5):
        readers.begin("a", fails)
        ended(readers)
        readers.settled()
    for name in "bcde":
        readers.begin(name, reads.of(name))
        ended(readers)
    readers.begin("f", reads.of("f"))
    planned_next(readers, "f")
    assert "f" not in reads.rows, "five chunks are not settled"
    readers.settled()
    assert ended(readers).keys() == {"f"}


def test_close_ends_a_read_that_waits_for_its_turn(opened: Opened, stop: threading.Event) -> None:
    readers: ChunkReaders[str] = ChunkReaders(1, opened, stop, MOST)
    reads = Reads()
    for name in "ab":
        readers.begin(name, reads.of(name))
    ended(readers, 2)
    readers.begin("c", reads.of("c"))
    planned_next(readers, "c")
    readers.close()
    assert reads.rows == ["a", "b"]
    assert [wire.closed for wire in opened.wires] == [True]


@pytest.mark.parametrize("connects", [True, False])
def test_error_is_raised_where_the_result_is_taken(
    readers: ChunkReaders[str], opened: Opened, *, connects: bool
) -> None:
    error = RuntimeError("no")
    opened.error = None if connects else error

    def read(_connection: Any, _planned: Callable[[Any], object], _last: Any) -> ChunkRows:
        raise error

    readers.begin("a", read)
    with pytest.raises(RuntimeError, match="no"):
        ended(readers)["a"].result()
    # The thread continues with the next read.
    opened.error = None
    readers.begin("b", at_once)
    assert ended(readers)["b"].result() is CHUNK


def test_close_ends_a_read_that_waits_for_the_server(opened: Opened, stop: threading.Event) -> None:
    readers: ChunkReaders[str] = ChunkReaders(2, opened, stop, MOST)
    waits, left = threading.Event(), threading.Event()

    def read(connection: Any, _planned: Callable[[Any], object], _last: Any) -> None:
        waits.set()
        cast(Wire, connection).here.recv(1)
        left.set()

    readers.begin("a", read)
    assert waits.wait(PATIENCE)
    readers.close()
    assert left.is_set()
    assert [wire.closed for wire in opened.wires] == [True]


def test_stop_cancels_the_query_of_a_worker(readers: ChunkReaders[str], opened: Opened, stop: threading.Event) -> None:
    def read(connection: Any, _planned: Callable[[Any], object], _last: Any) -> None:
        stop.set()
        assert cast(Wire, connection).cancelled.wait(PATIENCE)

    readers.begin("a", read)
    assert ended(readers)["a"].result() is None
