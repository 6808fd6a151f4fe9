"""Tests each rule of a snapshot in progress."""

from producers.snapshot.chunk_rules import Chunk, TableChunks, Unseen
from schemas.positions import Lsn
from schemas.xid_snapshot import Moment, Snapshot

SNAPSHOT = Snapshot.parse("100:110:105")
SEEN, NOT_SEEN, LATER = 99, 105, 110
BEFORE, BEHIND = Lsn(900), Lsn(1000)


def chunk(after: int | None, upto: int | None, lsn: int = 1000) -> Chunk:
    return Chunk(None if after is None else (after,), None if upto is None else (upto,), Moment(SNAPSHOT, Lsn(lsn)))


def test_an_event_in_a_range_not_copied_is_dropped() -> None:
    chunks = TableChunks([chunk(None, 10)])
    assert not chunks.publishes((11,), LATER, BEHIND)
    assert not TableChunks().publishes((1,), LATER, BEHIND)


def test_event_in_copied_range_is_dropped_only_if_chunk_saw_it() -> None:
    chunks = TableChunks([chunk(None, 10)])
    assert not chunks.publishes((10,), SEEN, BEFORE)
    assert chunks.publishes((10,), NOT_SEEN, BEFORE)
    assert chunks.publishes((10,), LATER, BEFORE)


def test_commit_after_chunk_is_published() -> None:
    assert TableChunks([chunk(None, 10)]).publishes((10,), SEEN, BEHIND)


def test_the_bounds_are_exclusive_below_and_inclusive_above() -> None:
    chunks = TableChunks([chunk(5, 10)])
    assert [key for key in range(4, 13) if chunks.publishes((key,), LATER, BEFORE)] == [6, 7, 8, 9, 10]


def test_open_end_covers_every_greater_key() -> None:
    chunks = TableChunks([chunk(None, 10), chunk(10, None)])
    assert chunks.publishes((10**12,), LATER, BEFORE)
    assert chunks.complete
    assert not chunks.settled


def test_chunks_done_out_of_order_leave_a_hole_that_is_not_copied() -> None:
    chunks = TableChunks([chunk(20, 30), chunk(None, 10)])
    assert [key for key in (10, 11, 20, 21, 30, 31) if chunks.publishes((key,), LATER, BEFORE)] == [10, 21, 30]
    assert chunks.gap() == Chunk((10,), (20,))
    assert not chunks.complete


def test_next_gap_is_the_first_that_no_worker_reads() -> None:
    chunks = TableChunks([chunk(20, 30), chunk(None, 10)])
    assert chunks.gap([Chunk((10,), (15,))]) == Chunk((15,), (20,))
    assert chunks.gap([Chunk((10,), (20,))]) == Chunk((30,), None)
    assert chunks.gap([Chunk((30,), None), Chunk((10,), (20,))]) is None
    assert TableChunks().gap([Chunk((5,), None)]) == Chunk(None, (5,))
    chunks.copied(chunk(30, None))
    chunks.copied(chunk(10, 20))
    assert chunks.gap() is None
    assert chunks.complete


def test_past_its_position_a_chunk_is_settled_and_merges_with_its_neighbour() -> None:
    chunks = TableChunks([chunk(None, 10, lsn=1000), chunk(10, 20, lsn=2000), chunk(20, None, lsn=2000)])
    assert not chunks.passed(Lsn(999))
    assert chunks.passed(Lsn(1000))
    assert [each.upto for each in chunks.chunks] == [(10,), (20,), None]
    assert chunks.passed(Lsn(2000))
    assert chunks.chunks == (Chunk(None, None),)
    assert chunks.settled


def test_one_chunk_can_be_the_whole_table() -> None:
    chunks = TableChunks([Chunk(None, None, Moment(SNAPSHOT, Lsn(1000)))])
    assert chunks.complete
    assert not chunks.publishes((b"any",), SEEN, BEFORE)
    assert chunks.publishes((b"any",), LATER, BEFORE)


def test_after_a_restart_nothing_is_copied() -> None:
    chunks = TableChunks([chunk(None, None)])
    chunks.restart()
    assert not chunks.complete
    assert not chunks.publishes((1,), LATER, BEHIND)


def test_a_passed_transaction_stays_unseen_until_a_snapshot_sees_it() -> None:
    unseen = Unseen([105])
    unseen.passed(99)
    assert not unseen.visible_in(SNAPSHOT)
    assert unseen.xids == (105,)
    assert unseen.visible_in(Snapshot.parse("106:110:"))
