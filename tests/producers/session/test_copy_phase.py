"""What the log tells of tables that are copied: how far they are, and what is read again after a start."""

from __future__ import annotations

import pytest
import structlog

from infra.service import log
from infra.state.positions import ChunkState, SnapshotState
from producers.publish.table_publisher import TableFeed
from producers.session.copy_phase import Copied, CopyLog, Turns
from producers.snapshot.reader import ChunkRows
from schemas.positions import Lsn, Position
from schemas.xid_snapshot import Snapshot
from tests.producers.captures import RELATION, TABLE, MemoryRegistry, done, feed

Lines = list[tuple[str, int, int]]


@pytest.fixture
def begun() -> SnapshotState:
    """Two chunks of three rows are copied, of ten."""
    return SnapshotState(
        source="main",
        table=TABLE.name,
        topic=TABLE.topic,
        rows=6,
        chunks_done=2,
        chunks=10,
        copied=(ChunkState(after=None, upto=("6",)),),
    )


def read_on(of: TableFeed, first: int, upto: int | None) -> Copied:
    """Copy a chunk of three rows."""
    data = b"".join(b"%d\tsecret\n" % key for key in range(first, first + 3))
    chunk = ChunkRows(data, 3, RELATION, Snapshot(5, 5), Lsn(100))
    rows = of.add_chunk(None if upto is None else (str(upto),), chunk, Position(Lsn(50), 0), 3)
    return Copied(rows, len(data), chunk.lsn)


def told(lines: list[structlog.typing.EventDict]) -> list[tuple[object, ...]]:
    fields = ("rows", "chunks_done", "chunks", "chunk_rows", "chunk", "bytes")
    return [(line["event"], *(line[name] for name in fields if name in line)) for line in lines]


def test_a_start_in_mid_snapshot_tells_how_far_it_is_and_which_chunk_may_be_read_twice(begun: SnapshotState) -> None:
    table = feed(MemoryRegistry(), begun)
    with structlog.testing.capture_logs() as lines:
        copying = CopyLog(log.get())
        copying.resumed([table], {TABLE.name: begun}, 3)
        copying.copied(table, read_on(table, 7, 9))
        copying.copied(table, read_on(table, 10, 12))
        copying.copied(table, read_on(table, 13, None))
    again, size = "copied the only chunk that may have been read before", len(b"7\tsecret\n" * 3)
    assert told(lines) == [
        ("going on with a snapshot; at most one chunk is read again", 6, 2, 10, 3),
        (again, 3, 3, size),
        # The estimate is the feed's own, of a hundred rows.
        ("copying", 9, 3, 34),
        ("table copied", 15, 5, 5),
    ]
    assert "secret" not in str(lines), "a row's values are in the log"


@pytest.mark.parametrize("case", ["first start", "anew", "all read"])
def test_nothing_is_told_of_a_table_that_nobody_began_or_that_is_read_whole(begun: SnapshotState, case: str) -> None:
    states = {"first start": None, "anew": begun.model_copy(update={"anew": True}), "all read": done()}
    state = states[case]
    table = feed(MemoryRegistry(), state)
    with structlog.testing.capture_logs() as lines:
        CopyLog(log.get()).resumed([table], {TABLE.name: state} if state else {}, 3)
    assert lines == []


def test_chunks_are_planned_by_the_bytes_of_the_one_before_and_tables_in_the_way_are_left_for_longer_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    table = feed(MemoryRegistry())
    turns = Turns(log.get())
    assert turns.rows(table, 50_000) == 50_000
    turns.took(table, 640, 640 * 50_000)
    assert 400 < turns.rows(table, 50_000) < 640
    turns.took(table, 1, 100_000_000)
    assert turns.rows(table, 50_000) == 1
    turns.took(table, 1, 10)
    assert turns.rows(table, 50_000) == 50_000
    with structlog.testing.capture_logs() as lines:
        waits = []
        for _ in range(6):
            assert turns.ready(table)
            turns.set_aside(table, "locked")
            began = now
            while not turns.ready(table):
                now += 0.25
            waits.append(now - began)
        turns.took(table, 1, 10)
        turns.set_aside(table, "locked again")
    assert waits == [0.5, 1, 2, 5, 5, 5]
    assert [line["reason"] for line in lines] == ["locked", "locked again"]
