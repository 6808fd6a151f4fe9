"""The compiled reader of COPY: which lines it takes from libpq, where it stops, and that it frees each line."""

from __future__ import annotations

from typing import Final

import pytest

from schemas.codec import implementation
from tests.schemas.codec.fake_libpq import CONNECTION, END, WAIT, FakeLibpq

pytestmark = pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")

COPY_END: Final = 0
MORE: Final = -1
NOTHING_YET: Final = -2
LOST: Final = -3
ANY: Final = 1 << 62


def take(libpq: FakeLibpq, room: int = ANY, longest: int = ANY, some: bool = False) -> tuple[bytes, int, int]:
    found: tuple[bytes, int, int] = implementation.compiled.libpq_lines(
        libpq.functions, CONNECTION, room, longest, some
    )
    assert libpq.lent == 0
    return found


def test_lines_end_with_copy() -> None:
    libpq = FakeLibpq([b"1\n", WAIT, b"\n", b"3\0\n"])
    assert take(libpq) == (b"1\n\n3\0\n", 3, COPY_END)
    assert take(libpq) == (b"", 0, COPY_END)


def test_lines_end_where_the_server_has_sent_no_more() -> None:
    libpq = FakeLibpq([b"1\n", WAIT, WAIT, b"2\n", WAIT, WAIT, END])
    assert take(libpq) == (b"1\n", 1, NOTHING_YET)
    assert take(libpq) == (b"2\n", 1, NOTHING_YET)
    assert take(libpq) == (b"", 0, COPY_END)


def test_lines_before_a_lost_connection_are_returned() -> None:
    assert take(FakeLibpq([b"1\n", WAIT, b"2\n"], lost=True)) == (b"1\n", 1, LOST)


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) - 1, 1000, 3 << 20])
def test_block_ends_with_the_line_that_completes_it(size: int) -> None:
    line = b"x" * (size - 1) + b"\n"
    count = -(-(1 << 20) // size)
    libpq = FakeLibpq([line] * count + [b"last\n"])
    assert take(libpq) == (line * count, count, MORE)
    assert take(libpq) == (b"last\n", 1, COPY_END)


def test_lines_end_before_one_that_exceeds_a_limit() -> None:
    lines = [b"123\n", b"12345\n"]
    assert take(FakeLibpq(lines), room=10) == (b"".join(lines), 2, COPY_END)
    assert take(FakeLibpq(lines), room=9) == (b"123\n", 1, 6)
    assert take(FakeLibpq(lines), longest=5) == (b"123\n", 1, 6)
    assert take(FakeLibpq(lines), room=1) == (b"123\n", 1, 6)  # the first one is taken, whatever the room
    assert take(FakeLibpq(lines), room=3, some=True) == (b"", 0, 4)
    assert take(FakeLibpq(lines), room=0, longest=3) == (b"", 0, 4)
    assert take(FakeLibpq([b"x" * (2 << 20), b"1\n"]), longest=1 << 20) == (b"", 0, 2 << 20)


def test_negative_room_discards_lines() -> None:
    libpq = FakeLibpq([b"1\n"] * 5 + [b"x" * (1 << 20), b"2\n", WAIT, WAIT, b"3\n"])
    assert take(libpq, room=-1, longest=0) == (b"", 0, MORE)
    assert take(libpq, room=-1) == (b"", 0, NOTHING_YET)
    assert take(libpq, room=-1) == (b"", 0, COPY_END)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), TypeError),
        (([1, 2, 3], 1, 1, 1, False), TypeError),
        (((1, 2), 1, 1, 1, False), TypeError),
        (((1, 0, 3), 1, 1, 1, False), ValueError),
        (((1, 2, 3), 0, 1, 1, False), ValueError),
        (((1, 2, "3"), 1, 1, 1, False), TypeError),
        (((1, 2, 3), 1, 1 << 70, 1, False), OverflowError),
        (((1, 2, 3), 1, 1, "1", False), TypeError),
    ],
)
def test_other_arguments_are_refused(arguments: tuple[object, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        implementation.compiled.libpq_lines(*arguments)
