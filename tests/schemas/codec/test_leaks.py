"""The compiled codec keeps no memory and no references, whether a call returns, leaves a row to Python or fails.

tracemalloc also counts what C allocates by PyMem_RawMalloc, such as a plan's buffers.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import tracemalloc
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import pytest

from schemas.codec import implementation
from schemas.events import UNCHANGED
from tests.schemas.codec.fake_libpq import CONNECTION, WAIT, FakeLibpq

pytestmark = pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")

CALLS: Final = 200
KINDS: Final = 12
NOISE: Final = b"x" * 70


class Fails(Exception):
    """What the Python functions of these plans raise."""


def fails(*arguments: object) -> object:
    raise Fails(arguments)


class Record:
    """A record of Kafka whose methods answer, or one of which fails."""

    def __init__(self, value: object, *, failing: str = "", offset: object = 5, key: object = NOISE) -> None:
        self._value, self._failing, self._offset, self._key = value, failing, offset, key

    def _answer(self, name: str, answer: object) -> Any:
        if name == self._failing:
            raise Fails(name)
        return answer

    def error(self) -> Any:
        return self._answer("error", None)

    def topic(self) -> Any:
        return self._answer("topic", "topic")

    def partition(self) -> Any:
        return self._answer("partition", 0)

    def offset(self) -> Any:
        return self._answer("offset", self._offset)

    def key(self) -> Any:
        return self._answer("key", self._key)

    def value(self) -> Any:
        return self._answer("value", self._value)


def plan(codec: ModuleType, kind: int = 5, python: Callable[..., object] = fails) -> Any:
    column = (kind, -(1 << 63), (1 << 63) - 1, 40, 2, kind in (7, 8, 9, 10, 11), kind in (5, 11), False)
    return codec.Plan((column, column), (0,), b"\0\0\0\0\5", b"\0", (b"\x02a", b"\x02b"), (python,) * 5)


TEXTS: Final = (
    *(b"t", b"1", b"-5", b"1.5", b"x" * 10_000, b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", b"2024-02-29", b"12:00:00"),
    *(b"2024-02-29 00:00:00.5", b"2024-02-29 00:00:00+00", b"-123456789012345678901234567890.50", b"NaN", b"", b"\\"),
)


def encode_every_kind(codec: ModuleType) -> None:
    for kind in range(KINDS):
        made = plan(codec, kind)
        for text in TEXTS:
            for new in ([text, None], (text, UNCHANGED), [None, text], [text], [text, 5], 5):
                for call, arguments in (
                    (made.key, (new,)),
                    (made.change, (b"prefix", 1, 2, new)),
                    (made.update, (b"prefix", 1, 1 << 70, new, new)),
                    (made.update, (b"prefix", 1, 2, new, new)),
                    (made.delete, (b"prefix", 1, 2, new)),
                    (made.delete, ("prefix", 1, 2)),
                ):
                    with contextlib.suppress(Fails):
                        call(*arguments)
            for line in (text + b"\t\\N\n", text + b"\n", text + b"\t" + text):
                with contextlib.suppress(Fails):
                    made.encode_copy(line * 3, b"prefix")
        with contextlib.suppress(Fails):
            made.encode_copy(b"no bytes", None)


def encode_blocks_of_lines(codec: ModuleType) -> None:
    made = plan(codec)
    line = b"x" * 500_000 + b"\t\\n\n"
    made.encode_copy(line * 5, b"prefix")
    made.encode_copy(b"y" * (5 << 20) + b"\t\\N\n", b"prefix")
    with contextlib.suppress(Fails):
        made.encode_copy(line * 5 + b"one", b"prefix")


def refuse_plans(codec: ModuleType) -> None:
    column, names, python = (0, 0, 0, 0, 0, False, False, False), (b"\x02a",), (fails,) * 5
    for arguments in (
        (),
        ((column,), (1,), b"", b"", names, python),
        ((column,), ("0",), b"", b"", names, python),
        ((column,), (), b"", b"", names, python),
        (((99, *column[1:]),), (0,), b"", b"", names, python),
        ((5,), (0,), b"", b"", names, python),
        ((column,), (0,), b"", b"", ("a",), python),
        ((column,), (0,), b"", b"", names, python[:4]),
    ):
        with contextlib.suppress(TypeError, ValueError):
            codec.Plan(*arguments)
    with contextlib.suppress(TypeError):
        codec.Plan(columns=())


def plans_in_a_cycle(codec: ModuleType) -> None:
    holder: list[Any] = []
    holder.append(plan(codec, python=holder.append))
    holder.append(codec.Reader(((1, NOISE.decode(), holder.append),)))


def rows(codec: ModuleType) -> None:
    data = b"t\0\0\0\x46" + NOISE + b"nu"
    row, _ = codec.tuple_row(data, 0, 3)
    other, _ = codec.tuple_row(data, 0, 3)
    assert (list(row), row[0], row == other, row != [], row == 5) == (
        [NOISE, None, UNCHANGED],
        NOISE,
        True,
        True,
        False,
    )
    repr(row)
    for call in (lambda: row[3], lambda: hash(row), lambda: row < other):
        with contextlib.suppress(IndexError, TypeError):
            call()
    plan(codec).key(codec.tuple_row(data, 0, 2)[0])
    for arguments in ((data, 0, 4), (data, -1, 1), (data, 0), (data, "0", 1), (data, 1 << 70, 1)):
        with contextlib.suppress(TypeError, OverflowError):
            codec.tuple_row(*arguments)


def events(codec: ModuleType) -> None:
    def make(cell: bytes) -> object:
        if cell == b"\x02\x04bb":
            raise Fails
        return NOISE + cell

    reader = codec.Reader(((4, "text", None), (4, "made", make), (1, None, None)))
    row = b"\x02\x02\x04aa\x02\x04aa\x02\x02"
    texts = b"\x80\x01" + b"t" * 64 + b"\0"
    for value in (
        b"\0\0\0\0" + row + b"\0",
        b"\0\0\0" + row + b"\0\0",
        b"\0\0\0" + row + row + b"\0",
        b"\0\0\0" + row + row,
        b"\0\0\0\0\0\x02\0\x02\x04aa" + texts,
        b"\0\0\0\0\0\x02\x02\x04aa" + texts + b"\x02\x04aa" + texts,
        b"\0\0\0\0\0\x02\x02\x04aa" + texts + b"\x02\x04aa",
        b"\0\0\0\0\0\x02\x02\x04aa" + texts + b"\x02\x04\xff\xff" + texts,
        b"\0\0\0\0\0\x02\x02\x04aa\x04\xff\xff\0\0",
        b"\0\0\0\0\0\x02\x03\x0a\x04aa" + texts + b"\0",
        b"\0\0\0\0\0\x04",
        b"\0\0\x02\x04aa\0\0" + row + b"\0",
        b"\0\0\x02\x04aa",
        b"\0\0\x02\x04\xff\xff\0\0" + row,
        b"\0\0\x01\x04aa\0\0" + row,
        b"\0\0\0" + row + b"\x02\x02\x04aa\x02\x04bb\x02\x02",
        b"\0\0\0" + row + b"\x02\x02\x04\xff\xff\0\0",
        b"\0\0\0" + row + b"\x02\x02\x04aa\x06",
        b"\0\0\0" + row + row + b"\0",
        b"",
    ):
        reader.read(value, 0)
    for arguments in ((), (5, 0), (b"", "0")):
        with contextlib.suppress(TypeError):
            reader.read(*arguments)
    for cells in ((), (5,), ((9, "id", None),), ((5, "id", None),), ((1, "id", make), (1,))):
        with contextlib.suppress(TypeError, ValueError):
            codec.Reader(cells)


def stretches(codec: ModuleType) -> None:
    header = b"\0\0\0\0\7"
    good = Record(header + b"needle" + NOISE)
    failing = [Record(header, failing=name) for name in ("error", "topic", "partition", "offset", "value")]
    for last in (*failing, Record("text"), Record(None), Record(b""), Record(header, offset="5"), Record(header)):
        records = [good, Record(None, offset=None), last]
        for needles in ((), (b"needle",), (b"other", b"y")):
            for known in ({}, {header: 1}):
                with contextlib.suppress(Fails, TypeError):
                    codec.sift(records, 0, "topic", 0, 0, needles, known, 10)
                with contextlib.suppress(Fails, TypeError):
                    codec.sift(records, 0, None, 0, 9, needles, known, 1)
    with contextlib.suppress(ValueError):
        codec.sift([], -1, None, 0, 0, (), {}, 1)
    for arguments in ((b"value", (b"l",)), (b"value", ("l",)), (b"value",)):
        with contextlib.suppress(TypeError):
            codec.mentions(*arguments)


def marks(codec: ModuleType) -> None:
    start = b"\0\0\0\0\7\2u"
    event = start + b"\2\x0e\x0e\x0afalse\x0e\x0e\x0e\0\0\2" + NOISE
    failing = [Record(event, failing=name) for name in ("error", "partition", "offset", "key", "value")]
    odd = [Record("text"), Record(event, key="text"), Record(event, offset="5"), Record(event, offset=-1)]
    good = [Record(event), Record(None), Record(NOISE), Record(event[:-80]), Record(event, key=b"\0" * 5)]

    def learn(value: bytes) -> None:
        if value[:1] == b"x":
            raise Fails

    for records in (good[:2], good, *([good[0], each] for each in (*failing, *odd))):
        for known in ([(start, True)], [(start, False)], [(5, True)], [start]):
            for ends in ({0: 100}, {0: 2}, {}, {0: "text"}):
                with contextlib.suppress(Fails, TypeError, ValueError):
                    codec.topic_marks(records, ends, {}, known, learn, bytes(16))
    made = codec.table_marks([NOISE] * 20, [NOISE] * 20, 1, bytes(16))
    codec.scatter(made, [bytearray(b"x") for _ in range(4)])
    codec.differences(made, made, codec.table_marks([NOISE[::-1]] * 3, [NOISE] * 3, 1, bytes(16)))
    for call, arguments in (
        (codec.table_marks, ([NOISE], [], 1, bytes(16))),
        (codec.table_marks, ([NOISE, b"x"], [NOISE, NOISE], 1, bytes(16))),
        (codec.table_marks, ([NOISE], [NOISE], 1, b"short")),
        (codec.topic_marks, ([], {}, {}, [], learn, b"short")),
        (codec.scatter, (made, [bytearray()] * 3)),
        (codec.scatter, (made, [b"", b""])),
        (codec.scatter, (made[1:], [bytearray()])),
        (codec.differences, (made, made, made[1:])),
    ):
        with contextlib.suppress(TypeError, ValueError):
            call(*arguments)


def marks_of_lines(codec: ModuleType) -> None:
    secret = bytes(16)
    for kind in (5, 6):  # a column of text, and one that needs the GIL
        made = plan(codec, kind)
        good = b"1.5\t\\N\n"
        for lines in (b"", good, good * 9, good * 9 + b"odd", good + NOISE * 9):
            made.copy_marks(lines, 1, secret)
        for arguments in ((good, 1), (good, 1, b"short"), (good, -1, secret), ("text", 1, secret), (good, "1", secret)):
            with contextlib.suppress(TypeError, OverflowError):
                made.copy_marks(*arguments)


def messages(codec: ModuleType) -> None:
    message = b"d\0\0\0\x4a" + NOISE
    codec.copy_data(bytearray(message * 3 + b"d\0\0"))
    for argument in (5, "text"):
        with contextlib.suppress(TypeError):
            codec.copy_data(argument)


def lines_of_libpq(codec: ModuleType) -> None:
    cases: list[tuple[list[bytes | int], bool]] = [
        ([NOISE, WAIT, NOISE], False),
        ([NOISE, WAIT, WAIT], False),
        ([NOISE, WAIT], True),
    ]
    for answers, lost in cases:
        for room, longest in ((1 << 62, 1 << 62), (100, 100), (10, 10), (-1, 10)):
            codec.libpq_lines(FakeLibpq(answers, lost=lost).functions, CONNECTION, room, longest, False)
    for arguments in ((), ((1, 2, 0), 1, 1, 1, False), ((1, 2, 3), "1", 1, 1, False)):
        with contextlib.suppress(TypeError, ValueError):
            codec.libpq_lines(*arguments)


def changes_of_the_stream(codec: ModuleType) -> None:
    """Every kind of change, and messages that end the run: broken, of another key, too large, or no bytes."""
    text, other = b"t\0\0\0\x46" + NOISE, b"t\0\0\0\1y"
    head, row = b"\0\0\0\1", b"\0\2" + text
    good = [b"I" + head + b"N" + row + b"n", b"U" + head + b"N" + row + b"u", b"D" + head + b"K" + row + b"n"]
    good.append(b"U" + head + b"O" + row + text + b"N" + row + b"u")
    bad: list[object] = [b"U" + head + b"O" + row + b"nN\0\2" + other + b"n", b"", b"T", b"I" + head + b"N\0\1n", 5]
    bad += [each[:size] for each in good for size in (5, 6, 8, len(each) - 1)]
    prefixes = (NOISE, NOISE, NOISE, NOISE)
    for kind in (5, 1):  # texts, and numbers that these are not
        made = plan(codec, kind)
        for message in bad:
            for largest, whole in ((1 << 20, False), (1 << 20, True), (10, False)):
                made.changes([*good, message], 0, 5, b"\1\0", prefixes, 1, 2, whole, largest, [])
        made.changes(good, 1, 5, b"\1\0", (None,) * 4, 1, 2, False, 1 << 20, [])
        refused: list[tuple[object, ...]] = [
            (),
            (good, -1, 5, b"\1\0", prefixes, 1, 2, False, 9, []),
            (good, 0, 5, b"\1", prefixes, 1, 2, False, 9, []),
            (good, 0, 5, b"\1\0", prefixes, 1 << 70, 2, False, 9, []),
            (tuple(good), 0, 5, b"\1\0", prefixes, 1, 2, False, 9, []),
        ]
        for arguments in refused:
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                made.changes(*arguments)


def messages_of_libpq(codec: ModuleType) -> None:
    frame = b"w" + bytes(24) + NOISE
    cases: list[list[bytes | int]] = [[frame, frame, b"k", frame], [frame, WAIT], [frame], [frame, -2], [b"w"]]
    for answers in cases:
        codec.libpq_messages(FakeLibpq(answers).functions, CONNECTION, 2, 1 << 20)
        codec.libpq_messages(FakeLibpq(answers).functions, CONNECTION, 9, 1 << 20)
    for arguments in ((), ((1, 2, 0), 1, 1, 1), ((1, 2, 3), "1", 1, 1), ((1, 2, 3), 1, "1", 1)):
        with contextlib.suppress(TypeError, ValueError):
            codec.libpq_messages(*arguments)


WORK: Final = (
    encode_every_kind, encode_blocks_of_lines, refuse_plans, plans_in_a_cycle, rows, events, stretches, marks,
    marks_of_lines, messages, lines_of_libpq, changes_of_the_stream, messages_of_libpq,
)  # fmt: skip


def growth(work: Callable[[], None], calls: int) -> tuple[int, int]:
    """Return by how many bytes, and how many references to shared objects, calls let the process grow."""
    shared = (None, UNCHANGED, fails, NOISE, True, *(getattr(implementation.compiled, n) for n in ("Plan", "Row")))
    for _ in range(3):
        work()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(3):
            work()
        gc.collect()
        size, references = tracemalloc.get_traced_memory()[0], sum(map(sys.getrefcount, shared))
        for _ in range(calls):
            work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - size, sum(map(sys.getrefcount, shared)) - references
    finally:
        tracemalloc.stop()


@pytest.mark.long
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_calls_keep_no_memory_and_no_references(work: Callable[[ModuleType], None]) -> None:
    # A leak is of 32 bytes or more a call; Python's own caches grow a little meanwhile.
    calls = 10 if work in (encode_every_kind, encode_blocks_of_lines) else CALLS
    size, references = growth(lambda: work(implementation.compiled), calls)
    assert size < 8 * calls + 2_000
    assert references < calls // 2
