"""Marks in C and in Python: those of each kind of record, and the same differences on random tables and topics."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.compare import marks
from consumers.compare.marks import GONE, MARK, NOWHERE, ODD
from schemas.codec import implementation
from schemas.codec.varints import encode_long
from schemas.errors import Malformed
from schemas.events import Column, Relation
from schemas.wire import HEADER_BYTES
from tests.schemas.codec.rows import Sample, copy_line, encoder_of, samples

PYTHON = SimpleNamespace(
    topic_marks=marks.topic_marks_in_python,
    table_marks=marks.table_marks_in_python,
    scatter=marks.scatter_in_python,
    differences=marks.differences_in_python,
)
BOTH = [PYTHON] if implementation.compiled is None else [PYTHON, implementation.compiled]
SECRET = bytes(range(16))
START = b"\0\0\0\0\7\2" + b"%c" + b"headrace of a table"
KEY = b"\0\0\0\0\5"
ROW = b"a row"
END = {0: 1000, 3: 1000}


def event(
    op: bytes = b"u", *, xid: int | None = 700, flag: bytes = b"\x0afalse", rest: bytes = b"\0\0\2" + ROW
) -> bytes:
    """The value of an event whose position is 2**40 and 5."""
    transaction = b"\0" if xid is None else b"\2" + encode_long(xid)
    numbers = encode_long(1 << 40) + encode_long(5) + encode_long(1_700_000_000_000)
    return START % op + transaction + encode_long(1_700_000_000_000) + flag + numbers + rest


@dataclass
class FakeRecord:
    """A record as from Kafka."""

    at: int
    content: Any
    label: Any = KEY + b"\2"
    number: int = 0
    failure: KafkaError | None = None

    def error(self) -> KafkaError | None:
        return self.failure

    def partition(self) -> int:
        return self.number

    def offset(self) -> int:
        return self.at

    def key(self) -> Any:
        return self.label

    def value(self) -> Any:
        return self.content


def marked(
    of: Any, records: list[Any], ends: dict[int, int] | None = None
) -> tuple[list[Any], list[Any], dict[int, int]]:
    """The marks, the others, and the offsets reached; rows of the schema 8 cannot be compared."""
    known: list[tuple[bytes, bool]] = []

    def learn(value: bytes) -> None:
        start = value[: len(START % b"u")]
        if start[HEADER_BYTES + 1 : HEADER_BYTES + 2] in (b"r", b"c", b"u", b"d") and start[-5:] == b"table":
            known.append((start, value[4] == 7))

    reached: dict[int, int] = {}
    made, others = of.topic_marks(list(records), END if ends is None else ends, reached, known, learn, SECRET)
    return list(MARK.iter_unpack(made)), others, reached


@pytest.mark.parametrize("of", BOTH)
class TestTopicMarks:
    def test_row_of_event_has_the_mark_of_the_same_row_in_the_table(self, of: Any) -> None:
        (key, row, place), *_ = MARK.iter_unpack(of.table_marks([KEY + b"\2"], [ROW], 9, SECRET))
        assert place == 9
        values = [
            event(),
            event(b"r", xid=None, flag=b"\x08true"),
            event(b"c", xid=(1 << 32) - 1),
        ]
        found, others, reached = marked(
            of, [FakeRecord(number, value, number=3) for number, value in enumerate(values)]
        )
        assert found == [(key, row, 3 << 48 | number) for number in range(3)]
        assert (others, reached) == ([], {3: 3})

    def test_wide_rows_that_differ_in_one_byte_have_other_marks(self, of: Any) -> None:
        wide = bytes(range(256)) * 5
        rows = [wide[:place] + b"!" + wide[place + 1 :] for place in range(0, 1280, 7)] + [
            wide,
            wide[:-1],
            wide + b"\0",
        ]
        made = of.table_marks([KEY + b"\2"] * len(rows), rows, 0, SECRET)
        found = {row for _, row, _ in MARK.iter_unpack(made)}
        assert len(found) == len(set(rows))
        other = of.table_marks([KEY + b"\2"] * len(rows), rows, 0, SECRET[::-1])
        assert found.isdisjoint({row for _, row, _ in MARK.iter_unpack(other)})

    @pytest.mark.parametrize("value", [None, event(b"d"), event(b"d", rest=b"\0\2")])
    def test_deleted_row_is_gone(self, of: Any, value: bytes | None) -> None:
        assert [row for _, row, _ in marked(of, [FakeRecord(0, value)])[0]] == [GONE]

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"no event",
            event()[:-8],
            event()[:-20],
            event(rest=b"\0\2" + ROW),
            event(rest=b"\2\2a\0\0\2" + ROW),
            event(flag=b"\x08TRUE"),
            event(b"x"),
            event().replace(b"\0\0\0\0\7", b"\0\0\0\0\x08"),
            START % b"u" + b"\1" + event()[len(START % b"u") + 1 :],
        ],
    )
    def test_record_that_only_reading_can_compare_is_odd(self, of: Any, value: bytes) -> None:
        assert [row for _, row, _ in marked(of, [FakeRecord(0, value)])[0]] == [ODD]

    def test_errors_and_truncates_are_left_to_the_caller(self, of: Any) -> None:
        failed = FakeRecord(5, None, failure=KafkaError(KafkaError._PARTITION_EOF))
        truncate, keyless = FakeRecord(1, event(b"t"), KEY), FakeRecord(2, b"x", None)
        records = [truncate, keyless, FakeRecord(3, None, KEY), failed]
        found, others, reached = marked(of, records)
        assert (found, others, reached) == ([], [truncate, keyless, failed], {0: 4})

    def test_records_after_the_end_are_not_marked(self, of: Any) -> None:
        records = [FakeRecord(9, event()), FakeRecord(10, event()), FakeRecord(4, event(), number=1)]
        found, _, reached = marked(of, records, {0: 10})
        assert [place for _, _, place in found] == [9]
        assert reached == {0: 10}


@pytest.mark.skipif(implementation.compiled is None, reason="there is one implementation")
@given(samples(rows=3), st.sampled_from([0, 0, 1, 3]))
@settings(deadline=None)
def test_lines_have_the_marks_of_their_keys_and_rows(sample: Sample, cut: int) -> None:
    lines = b"".join(map(copy_line, sample.texts))
    lines = lines[: len(lines) - cut]
    python, compiled = encoder_of(sample, compiled=False), encoder_of(sample, compiled=True)
    try:
        expected = marks.copy_marks_in_python(python, lines, 7, SECRET)
    except Malformed as error:
        with pytest.raises(Malformed, match=f"^{re.escape(str(error))}$"):
            marks.copy_marks(compiled, lines, 7, SECRET)
    else:
        assert marks.copy_marks(compiled, lines, 7, SECRET) == expected
        assert marks.copy_marks(python, lines, 7, SECRET) == expected


@pytest.mark.skipif(implementation.compiled is None, reason="there is one implementation")
@pytest.mark.parametrize("other", [25, 701])
def test_usual_lines_are_marked_in_c(other: int) -> None:
    table = Relation(1, "public", "t", "f", (Column("id", 20), Column("other", other)), ())
    plan = encoder_of(Sample(table, ("id",), [], []), compiled=True).plan
    assert plan is not None
    made = plan.copy_marks(b"5\t1.5\n6\t\\N\n", 3, SECRET)
    assert made is not None
    assert [place for _, _, place in MARK.iter_unpack(made)] == [3, 3]
    assert plan.copy_marks(b"5\t1.5\n" + b"six\t1\n", 3, SECRET) is None


@pytest.mark.parametrize("of", BOTH)
def test_parts_have_all_marks_of_their_keys_in_order(of: Any) -> None:
    made = of.table_marks(
        [KEY + encode_long(n % 500) for n in range(1000)], [b"%d" % n for n in range(1000)], 1, SECRET
    )
    parts = [bytearray(b"") for _ in range(8)]
    of.scatter(made, parts)
    of.scatter(made, parts)
    marks_of = [list(MARK.iter_unpack(part)) for part in parts]
    whole = list(MARK.iter_unpack(made))
    for number, found in enumerate(marks_of):
        expected = [mark for mark in whole if mark[0] >> 61 == number]
        assert found == [*expected, *expected]
        assert len(expected) > 50
    only = [bytearray()]
    of.scatter(made, only)
    assert bytes(only[0]) == made
    with pytest.raises(ValueError, match="power of two"):
        of.scatter(made, [bytearray()] * 3)


def packed(*those: tuple[int, int, int]) -> bytes:
    return b"".join(MARK.pack(*each) for each in those)


@pytest.mark.parametrize("of", BOTH)
class TestDifferences:
    def test_missing_extra_and_differing_keys_have_both_places(self, of: Any) -> None:
        topic = packed((1, 10, 100), (2, 20, 101), (3, 30, 102), (3, 31, 103), (5, GONE, 104), (6, ODD, 105))
        table = packed((1, 10, 0), (2, 21, 0), (4, 40, 1), (3, 31, 1), (6, 60, 2))
        found = sorted(MARK.iter_unpack(of.differences(topic, b"", table)))
        assert found == [(2, 101, 0), (4, NOWHERE, 1), (6, 105, 2)]
        found = sorted(MARK.iter_unpack(of.differences(topic, b"", b"")))
        assert [key for key, _, _ in found] == [1, 2, 3, 6]
        assert {table for _, _, table in found} == {NOWHERE}

    def test_row_may_equal_the_topic_before_or_after(self, of: Any) -> None:
        topic = packed((1, 10, 100), (2, 20, 101), (3, 30, 102), (4, 40, 103))
        later = packed((1, 11, 200), (2, 21, 201), (2, 22, 202), (3, GONE, 203), (5, 50, 204), (6, 60, 205))
        for row, differs in ((20, False), (21, True), (22, False)):
            table = packed((1, 11, 0), (2, row, 0), (4, 40, 0), (5, 50, 0))
            found = list(MARK.iter_unpack(of.differences(topic, later, table)))
            assert found == ([(2, 202, 0)] if differs else [])


SMALL = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 9)), max_size=12)


@pytest.mark.skipif(implementation.compiled is None, reason="there is one implementation")
@given(SMALL, SMALL, SMALL)
def test_both_implementations_find_the_same(topic: Any, later: Any, table: Any) -> None:
    rows = {key: (key, row + 2, place) for key, row, place in table if key}  # a table has a key once, and no row is odd
    sides = (
        packed(*[mark for mark in topic if mark[0]]),
        packed(*[mark for mark in later if mark[0]]),
        packed(*rows.values()),
    )
    found = [sorted(MARK.iter_unpack(of.differences(*sides))) for of in BOTH]
    assert found[0] == found[1]


def test_key_of_hash_zero_is_found() -> None:
    for of in BOTH:
        assert of.differences(packed((0, 5, 1)), b"", packed((0, 5, 1))) == b""


@pytest.mark.skipif(implementation.compiled is None, reason="C must not take other objects for bytes")
@pytest.mark.parametrize("record", [FakeRecord(0, "text"), FakeRecord(0, event(), "key of text")])
def test_text_is_refused(record: FakeRecord) -> None:
    with pytest.raises(TypeError):
        marked(implementation.compiled, [record])
