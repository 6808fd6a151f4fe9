"""Tests each rule of a copy whose events continue to be published."""

from producers.snapshot.resnapshot_rules import KeyRange, RememberedChunk, Reread, Texts, pack_keys, united, unpack_keys
from schemas.positions import Lsn
from schemas.xid_snapshot import Moment, Snapshot

SNAPSHOT = Snapshot.parse("100:110:105")
SEEN, NOT_SEEN, LATER = 99, 105, 110
BEFORE, BEHIND = Lsn(900), Lsn(1000)
CHUNK = RememberedChunk(frozenset({b"1", b"2"}), Moment(SNAPSHOT, Lsn(1000)))


def test_event_for_remembered_key_is_dropped_only_if_chunk_saw_it() -> None:
    assert not CHUNK.publishes(b"1", SEEN, BEFORE)
    assert CHUNK.publishes(b"1", NOT_SEEN, BEFORE)
    assert CHUNK.publishes(b"1", LATER, BEFORE)
    assert CHUNK.publishes(b"1", SEEN, BEHIND)


def test_event_for_other_key_is_published() -> None:
    assert CHUNK.publishes(b"3", SEEN, BEFORE)


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
    assert reread.passed(Lsn(1500)).complete


def test_truncate_leaves_nothing_to_copy() -> None:
    assert Reread().copied(("2",), CHUNK).truncated().complete


def between(*ends: tuple[int | None, int | None]) -> list[KeyRange]:
    texts = ([None if end is None else (str(end),) for end in each] for each in ends)
    return [KeyRange(first, last) for first, last in texts]


def number(key: Texts) -> tuple[int | bytes, ...]:
    return (int(key[0]),)


def text(key: Texts) -> tuple[int | bytes, ...]:
    return (key[0].encode(),)


def test_adjacent_ranges_merge() -> None:
    for given, joined in (
        (between((1, 3), (7, 9), (2, 5)), between((1, 5), (7, 9))),
        (between((7, 9), (1, 20), (10, 30)), between((1, 30))),
        (between((4, 6), (1, 3)), between((1, 6))),
        (between((None, 3), (3, None)), between((None, None))),
        (between((None, 3), (5, None)), between((None, 3), (5, None))),
        (between((5, None), (7, 8), (None, None)), between((None, None))),
    ):
        assert united(given, number) == tuple(joined)
    # 10 is before 2 as text, and nothing is said of what may be between 1 and 2.
    assert united(between((1, 10), (2, 3), (11, 12)), text) == tuple(between((1, 10), (11, 12), (2, 3)))


def test_incomparable_ranges_and_partitions_do_not_merge() -> None:
    given = (*between((1, 3), (2, 5), (1, 3)), KeyRange(partition=5))
    assert united(given, None) == (*between((1, 3), (2, 5)), KeyRange(partition=5))
    assert united(given, number) == (*between((1, 5)), KeyRange(partition=5))
    assert united((*given, KeyRange()), None) == (KeyRange(),)


def test_too_many_ranges_become_whole_table() -> None:
    assert len(united(between(*((key, key) for key in range(0, 200, 2))), number)) == 100
    assert united(between(*((key, key) for key in range(0, 202, 2))), number) == (KeyRange(),)
    assert united([KeyRange(("x" * 300_000,))], None) == (KeyRange(),)


def test_keys_of_any_bytes_are_recorded() -> None:
    keys = frozenset({b"", b"\x00", b"\x00\x01", b"a" * 65_535, b"b" * 70_000, "é".encode()})
    assert unpack_keys(pack_keys(keys)) == keys
    assert unpack_keys("") == frozenset()
