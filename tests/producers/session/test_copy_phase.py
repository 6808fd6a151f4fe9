"""Logging of snapshots: their progress, and the chunk that may be read twice after a start."""

from __future__ import annotations

import pytest
import structlog

from infra.service import log
from infra.state.positions import ChunkState, SnapshotState
from producers.publish.table_publisher import TableFeed
from producers.session.copy_phase import Copied, CopyLog, Turns
from producers.snapshot.reader import ChunkRows
from schemas.positions import Lsn, Position
from schemas.xid_snapshot import Moment, Snapshot
from tests.producers.captures import RELATION, TABLE, MemoryRegistry, done, feed

Lines = list[tuple[str, int, int]]


@pytest.fixture
def begun() -> SnapshotState:
    """A feed of ten rows, of which two chunks of three rows are copied."""
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
    chunk = ChunkRows(data, 3, RELATION, Moment(Snapshot(5, 5), Lsn(100)))
    rows = of.add_chunk(None if upto is None else (str(upto),), chunk, Position(Lsn(50), 0), 3)
    return Copied(rows, len(data), chunk.moment.lsn)


def told(lines: list[structlog.typing.EventDict]) -> list[tuple[object, ...]]:
    fields = ("rows", "chunks_done", "chunks", "chunk_rows", "chunk", "bytes")
    return [(line["event"], *(line[name] for name in fields if name in line)) for line in lines]


def test_start_mid_snapshot_logs_progress_and_the_chunk_that_may_be_read_twice(begun: SnapshotState) -> None:
    table = feed(MemoryRegistry(), begun)
    with structlog.testing.capture_logs() as lines:
        copying = CopyLog(log.get())
        copying.resumed([table], {TABLE.name: begun}, 3)
        copying.copied(table, read_on(table, 7, 9))
        copying.copied(table, read_on(table, 10, 12))
        copying.copied(table, read_on(table, 13, None))
    again, size = "first chunk after resume copied", len(b"7\tsecret\n" * 3)
    assert told(lines) == [
        ("snapshot resumed", 6, 2, 10, 3),
        (again, 3, 3, size),
        # The feed's own estimate is a hundred rows.
        ("copying table", 9, 3, 34),
        ("table copied", 15, 5, 5),
    ]
    assert "secret" not in str(lines), "a row's values are in the log"


@pytest.mark.parametrize("case", ["first start", "from_scratch", "all read"])
def test_start_logs_nothing_for_new_and_complete_snapshots(begun: SnapshotState, case: str) -> None:
    states = {"first start": None, "from_scratch": begun.model_copy(update={"from_scratch": True}), "all read": done()}
    state = states[case]
    table = feed(MemoryRegistry(), state)
    with structlog.testing.capture_logs() as lines:
        CopyLog(log.get()).resumed([table], {TABLE.name: state} if state else {}, 3)
    assert lines == []


def test_chunk_size_follows_previous_chunk_and_busy_tables_are_set_aside_for_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    table = feed(MemoryRegistry())
    turns = Turns(log.get())
    assert turns.rows(table, 50_000) == 50_000
    turns.took(table, 640, 640 * 50_000, 0.1)
    assert 400 < turns.rows(table, 50_000) < 640
    turns.took(table, 1, 100_000_000, 0.1)
    assert turns.rows(table, 50_000) == 1
    turns.took(table, 1, 10, 0.1)
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
        turns.took(table, 1, 10, 0.1)
        turns.set_aside(table, "locked again")
    assert waits == [0.5, 1, 2, 5, 5, 5]
    assert [line["reason"] for line in lines] == ["locked", "locked again"]


def test_last_chunks_of_a_copy_phase_are_smaller_down_to_a_quarter() -> None:
    table = feed(MemoryRegistry())
    turns = Turns(log.get())
    for left in (0.01, 0.0, -1.0):
        assert turns.rows(table, 1_000, left) == 1_000, "nothing was read yet"
    turns.took(table, 1_000, 1_000_000, seconds=2.0)
    assert [turns.rows(table, 1_000, left) for left in (5.0, 2.0, 1.0, 0.4, -1.0)] == [1_000, 1_000, 500, 250, 250]
    assert turns.rows(table, 1_000) == 1_000
    assert turns.rows(table, 2, left=0.0001) == 1
