"""One table's feed: its chunks, its state as it is recorded, and going on from that."""

from __future__ import annotations

import pytest

from infra.positions import SnapshotState
from producers.snapshot import ChunkRows
from producers.visibility import Snapshot
from schemas.positions import Lsn, Position
from tests.producers.captures import RELATION, MemoryRegistry, done, feed, taken

STANDING = Position(Lsn(500), 4)
SNAPSHOT = Snapshot.parse("100:110:105")


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry()


def rows(*ids: int, lsn: int = 1000) -> ChunkRows:
    data = b"".join(b"%d\tv\n" % each for each in ids)
    return ChunkRows(data, len(ids), RELATION, SNAPSHOT, Lsn(lsn))


def test_a_chunk_s_rows_are_at_the_stream_s_standing_position(registry: MemoryRegistry) -> None:
    table = feed(registry)
    table.add_chunk(None, (2,), rows(1, 2), STANDING, 2)
    assert taken(registry, table) == [
        ("r", {"id": 1}, STANDING, {"id": 1, "v": "v"}),
        ("r", {"id": 2}, STANDING, {"id": 2, "v": "v"}),
    ]
    assert table.take() == []


def test_chunks_are_counted_towards_the_planner_s_estimate(registry: MemoryRegistry) -> None:
    table = feed(registry)
    table.add_chunk(None, (2,), rows(1, 2), STANDING, 10)
    assert (table.state.rows, table.state.chunks_done, table.state.chunks, table.state.done) == (2, 1, 10, False)
    table.add_chunk((2,), None, rows(3), STANDING, 10)
    assert (table.state.rows, table.state.chunks_done, table.state.chunks, table.state.done) == (3, 2, 2, True)
    assert table.judging


def test_another_process_goes_on_from_the_recorded_state(registry: MemoryRegistry) -> None:
    table = feed(registry)
    table.add_chunk(None, (2,), rows(1, 2), STANDING, 2)
    again = feed(registry, SnapshotState.model_validate_json(table.state.model_dump_json()))
    assert again.chunks.chunks == table.chunks.chunks
    assert again.chunks.frontier == (2,)
    assert again.state.not_before == 7
    for key, xid in ((b"1", 99), (b"1", 105), (b"3", 105)):
        assert again.publishes((key,), xid, Lsn(900)) == table.publishes((key,), xid, Lsn(900))


def test_a_snapshot_that_the_stream_has_passed_judges_nothing(registry: MemoryRegistry) -> None:
    assert not feed(registry, done()).judging
    table = feed(registry)
    table.add_chunk(None, None, rows(1), STANDING, 2)
    assert not table.settle(Lsn(999))
    assert table.settle(Lsn(1000))
    assert not table.judging
    assert not table.settle(Lsn(1001))
    assert [(each.snapshot, each.lsn) for each in table.state.copied] == [(None, None)]


def test_a_snapshot_that_starts_again_is_to_be_recorded_so(registry: MemoryRegistry) -> None:
    table = feed(registry)
    table.add_chunk(None, None, rows(1), STANDING, 2)
    table.restart()
    assert table.settle(Lsn(500))
    assert not table.settle(Lsn(500))
    assert table.judging
    assert (table.state.done, table.state.rows, table.state.chunks_done, table.state.copied) == (False, 0, 0, ())
