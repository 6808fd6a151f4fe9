"""Keys are found again by their marks, also when compaction removes their records meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pytest

from consumers.compare import judgement, marks
from consumers.compare.judgement import Comparison, Judge
from consumers.compare.marking import Difference, Marked
from consumers.compare.topic_rows import Latest

SECRET = bytes(16)
KEY = b"\0\0\0\0\5"


def key_hash(key: bytes) -> int:
    ((found, _, _),) = marks.MARK.iter_unpack(marks.table_marks([KEY + key], [b""], 0, SECRET))
    return int(found)


class CompactedTopic:
    """A topic whose records move: what is at a place when it is read, by the number of the reading."""

    def __init__(self, *readings: Mapping[int, bytes]) -> None:
        self._readings = list(readings)
        self._now = readings[0]

    def at(self, places: Collection[int]) -> Iterator[tuple[int, bytes, Latest]]:
        self._now = self._readings.pop(0) if len(self._readings) > 1 else self._readings[0]
        for place in sorted(places):
            if place in self._now:
                yield place, self._now[place], Latest(0, place, b"value of " + self._now[place])

    def places(self, hashes: Collection[int], *_: object) -> dict[int, int]:
        following = self._readings[0]
        return {key_hash(key): place for place, key in following.items() if key_hash(key) in hashes}


class Ranges:
    """A table whose ranges have the keys of a text each."""

    def keys_between(self, _after: Any, upto: Any) -> Iterator[list[bytes]]:
        yield [KEY + b"%c" % letter for letter in upto[0].encode()]


def judged(topic: CompactedTopic, differences: list[Difference]) -> list[dict[bytes, Latest | None]]:
    fakes: Any = topic, Ranges()
    nothing: Any = None
    judge = Judge(Comparison("t", "main"), nothing, fakes[1], fakes[0], nothing, nothing, threading.Event())
    marked = Marked(9, differences, {0: 100}, None, [("ab",), ("cde",), None], SECRET)
    return list(judge._groups(marked))


def difference(key: bytes, place: int | None, range_: int | None) -> Difference:
    return Difference(key_hash(key), place, range_)


def test_keys_without_a_record_are_found_in_their_range_of_the_table() -> None:
    topic = CompactedTopic({7: b"a"})
    (group,) = judged(topic, [difference(b"a", 7, 0), difference(b"d", None, 1)])
    assert group == {b"a": Latest(0, 7, b"value of a"), b"d": None}


def test_record_that_compaction_removed_is_looked_for_again() -> None:
    topic = CompactedTopic({7: b"a"}, {7: b"a", 30: b"b"})
    (group,) = judged(topic, [difference(b"a", 7, None), difference(b"b", 8, None), difference(b"c", 9, 1)])
    assert group == {b"a": Latest(0, 7, b"value of a"), b"b": Latest(0, 30, b"value of b"), b"c": None}


def test_key_whose_record_moves_at_each_look_is_not_forgotten() -> None:
    class Moving(CompactedTopic):
        def at(self, _places: Collection[int]) -> Iterator[tuple[int, bytes, Latest]]:
            return iter(())

    (group,) = judged(Moving({11: b"c"}), [difference(b"c", 9, 1)])
    assert group == {b"c": None}


def test_groups_are_small_enough_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgement, "RANGE_BYTES", 20)
    topic = CompactedTopic({place: b"%c" % (97 + place) for place in range(5)})
    groups = judged(topic, [difference(b"%c" % (97 + place), place, None) for place in range(5)])
    assert [len(group) for group in groups] == [2, 2, 1]
    monkeypatch.setattr(judgement, "_GROUP", 1)
    assert len(judged(topic, [difference(b"d", None, 1), difference(b"c", None, 1)])) == 2
