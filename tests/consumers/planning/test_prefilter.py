"""The prefilter in C and in Python: each rule by example, and equal results on random records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message
from hypothesis import given
from hypothesis import strategies as st

from consumers.planning import prefilter
from consumers.planning.prefilter import Stretch, sift_in_python
from schemas.codec import implementation
from schemas.positions import Offset

BOTH = [sift_in_python] if implementation.compiled is None else [sift_in_python, prefilter._sift_in_c]
KNOWN, KNOWN_TOO, UNKNOWN = b"\0\0\0\0\x03", b"\0\0\0\0\x04", b"\0\0\0\0\x09"
FOUND, OTHER = KNOWN + b"a needle in hay", KNOWN + b"hay"


@dataclass
class FakeRecord:
    """A record as from Kafka; an event unless it has a `failure`."""

    at: int | None
    content: bytes | None
    number: int | None = 0
    name: str | None = "t"
    failure: KafkaError | None = None

    def error(self) -> KafkaError | None:
        return self.failure

    def topic(self) -> str | None:
        return self.name

    def partition(self) -> int | None:
        return self.number

    def offset(self) -> int | None:
        return self.at

    def value(self) -> bytes | None:
        return self.content


def sifted(
    sift: prefilter.Sift,
    records: Sequence[Any],
    start: int = 0,
    *,
    topic: str | None = None,
    following: int = 0,
    needles: tuple[bytes, ...] = (b"needle",),
    room: int = 100,
) -> Stretch:
    return sift(list(records), start, topic, 0, Offset(following), needles, {KNOWN: None, KNOWN_TOO: None}, room)


def values(*contents: bytes | None) -> list[FakeRecord]:
    return [FakeRecord(at, content) for at, content in enumerate(contents)]


@pytest.mark.parametrize("sift", BOTH)
class TestRules:
    def test_prefilter_counts_unmentioned_events_and_tombstones(self, sift: prefilter.Sift) -> None:
        records = values(OTHER, None, FOUND, OTHER, FOUND, None)
        assert sifted(sift, records) == (6, 6, 2, 2, [records[2], records[4]])

    def test_every_value_is_candidate_without_needles(self, sift: prefilter.Sift) -> None:
        records = values(OTHER, None, FOUND)
        assert sifted(sift, records, needles=()) == (3, 3, 1, 0, [records[0], records[2]])

    def test_prefilter_stops_after_the_maximum_of_candidates(self, sift: prefilter.Sift) -> None:
        records = values(OTHER, FOUND, OTHER, FOUND, OTHER)
        assert sifted(sift, records, room=2) == (4, 4, 0, 2, [records[1], records[3]])

    def test_prefilter_starts_at_the_given_record(self, sift: prefilter.Sift) -> None:
        assert sifted(sift, values(FOUND, FOUND, OTHER), 2) == (3, 3, 0, 1, [])
        assert sifted(sift, values(FOUND), 1, following=1) == (1, 1, 0, 0, [])

    def test_records_before_the_next_offset_are_ignored(self, sift: prefilter.Sift) -> None:
        records = values(FOUND, OTHER, None, FOUND)
        assert sifted(sift, records, following=3) == (4, 4, 0, 0, [records[3]])
        assert sifted(sift, [FakeRecord(None, FOUND), *records], following=9) == (5, 9, 0, 0, [])

    def test_offsets_may_have_gaps(self, sift: prefilter.Sift) -> None:
        assert sifted(sift, [FakeRecord(5, OTHER), FakeRecord(1 << 40, None)]) == (2, (1 << 40) + 1, 1, 1, [])

    @pytest.mark.parametrize(
        "foreign",
        [
            FakeRecord(1, OTHER, 1),
            FakeRecord(1, OTHER, None),
            FakeRecord(1, OTHER, name="u"),
            FakeRecord(1, None, failure=KafkaError(KafkaError._PARTITION_EOF)),
        ],
    )
    def test_prefilter_stops_before_record_of_another_partition_or_error(
        self, sift: prefilter.Sift, foreign: FakeRecord
    ) -> None:
        records = [FakeRecord(0, FOUND), foreign, FakeRecord(2, FOUND)]
        assert sifted(sift, records, topic="t") == (1, 1, 0, 0, records[:1])

    def test_topic_none_accepts_any_topic(self, sift: prefilter.Sift) -> None:
        assert sifted(sift, [FakeRecord(0, OTHER), FakeRecord(1, OTHER, name="u")]) == (2, 2, 0, 2, [])

    @pytest.mark.parametrize("value", [UNKNOWN + b"needle", UNKNOWN, b"needle", b"\0\0\0\0", b""])
    def test_prefilter_stops_before_unknown_schema_unless_first(self, sift: prefilter.Sift, value: bytes) -> None:
        records = values(None, value, value)
        assert sifted(sift, records) == (1, 1, 1, 0, [])
        assert sifted(sift, records, 1, following=1) == (2, 2, 0, 0, [records[1]])
        assert sifted(sift, records, needles=()) == (3, 3, 1, 0, records[1:])

    @pytest.mark.parametrize("value", [KNOWN_TOO + b"needle", KNOWN_TOO, UNKNOWN, KNOWN[:4], b""])
    def test_prefilter_stops_before_another_schema(self, sift: prefilter.Sift, value: bytes) -> None:
        records = values(OTHER, FOUND, None, value, FOUND)
        assert sifted(sift, records) == (3, 3, 1, 1, [records[1]])

    def test_prefilter_accepts_kafka_records(self, sift: prefilter.Sift) -> None:
        records = [Message(topic="t", partition=0, offset=at, value=each) for at, each in enumerate((OTHER, FOUND))]
        stop, following, tombstones, unmentioned, candidates = sifted(sift, records, topic="t")
        assert (stop, following, tombstones, unmentioned) == (2, 2, 0, 1)
        assert [candidate is records[1] for candidate in candidates] == [True]

    def test_exception_from_record_is_raised(self, sift: prefilter.Sift) -> None:
        class Broken(FakeRecord):
            def value(self) -> bytes | None:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            sifted(sift, [FakeRecord(0, FOUND), Broken(1, FOUND)])


RECORDS = st.builds(
    FakeRecord,
    st.none() | st.integers(0, 9),
    st.none()
    | st.builds(
        bytes.__add__,
        st.sampled_from([KNOWN, KNOWN, KNOWN_TOO, UNKNOWN, KNOWN[:3], b""]),
        st.sampled_from([b"", b"x", b"xy"]),
    ),
    st.sampled_from([0, 0, 0, 0, 1, None]),
    st.sampled_from(["t", "t", "t", "u", None]),
    st.sampled_from([None, None, None, KafkaError(KafkaError._PARTITION_EOF)]),
)


@pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")
@given(
    st.lists(RECORDS, max_size=12),
    st.integers(0, 3),
    st.sampled_from([None, "t"]),
    st.integers(0, 5),
    st.lists(st.sampled_from([b"x", b"y", b"xy", KNOWN]), max_size=2),
    st.integers(1, 4),
)
def test_c_and_python_prefilters_agree(
    records: list[FakeRecord], start: int, topic: str | None, following: int, needles: list[bytes], room: int
) -> None:
    python, compiled = (
        sifted(sift, records, start, topic=topic, following=following, needles=tuple(needles), room=room)
        for sift in BOTH
    )
    assert python[:4] == compiled[:4]
    assert [id(record) for record in python.candidates] == [id(record) for record in compiled.candidates]


@pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), TypeError),
        (([], -1, None, 0, 0, (), {}, 1), ValueError),
        (((), 0, None, 0, 0, (), {}, 1), TypeError),
        (([5], 0, None, 0, 0, (), {}, 1), AttributeError),
        (([FakeRecord(0, b"")], 0, None, 0, 0, ("a",), {b"": 0}, 1), TypeError),
        (([FakeRecord(1 << 70, b"")], 0, None, 0, 0, (), {}, 1), OverflowError),
    ],
)
def test_c_prefilter_rejects_invalid_arguments(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        implementation.compiled.sift(*arguments)
