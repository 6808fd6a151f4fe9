"""The rules of a copy whose events go on being published, each forced."""

from producers.reread import KeyRange, RememberedChunk, Reread, pack_keys, unpack_keys
from schemas.positions import Lsn
from schemas.xid_snapshot import Snapshot

SNAPSHOT = Snapshot.parse("100:110:105")
SEEN, NOT_SEEN, LATER = 99, 105, 110
BEFORE, BEHIND = Lsn(900), Lsn(1000)
CHUNK = RememberedChunk(frozenset({b"1", b"2"}), SNAPSHOT, Lsn(1000))


def test_an_event_on_a_key_that_the_chunk_returned_is_dropped_exactly_if_the_chunk_saw_it() -> None:
    assert not CHUNK.publishes(b"1", SEEN, BEFORE)
    assert CHUNK.publishes(b"1", NOT_SEEN, BEFORE)
    assert CHUNK.publishes(b"1", LATER, BEFORE)
    assert CHUNK.publishes(b"1", SEEN, BEHIND)


def test_an_event_on_any_other_key_is_published() -> None:
    assert CHUNK.publishes(b"3", SEEN, BEFORE)
    assert Reread().publishes(b"1", SEEN, BEFORE)


def test_one_chunk_is_remembered_at_a_time_until_the_stream_has_passed_it() -> None:
    reread = Reread(KeyRange(("1",), ("9",)))
    assert reread.ready
    reread = reread.copied(("2",), CHUNK)
    assert not reread.ready
    assert reread.passed(Lsn(999)) is reread
    reread = reread.passed(Lsn(1000))
    assert (reread.ready, reread.after, reread.chunk) == (True, ("2",), None)
    reread = reread.copied(None, CHUNK)
    assert not reread.complete
    assert reread.passed(Lsn(1000)).complete


def test_after_a_truncate_nothing_is_left_to_copy() -> None:
    assert Reread().copied(("2",), CHUNK).truncated().complete


def test_keys_of_any_bytes_are_recorded() -> None:
    keys = frozenset({b"", b"\x00", b"\x00\x01", b"a" * 65_535, b"b" * 70_000, "é".encode()})
    assert unpack_keys(pack_keys(keys)) == keys
    assert unpack_keys("") == frozenset()
