"""The compiled reader of a replication stream: which messages it takes from libpq, and that it frees each frame."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from producers.stream.buffered import Buffered, take_one
from producers.stream.frames import parse
from schemas.codec import implementation
from schemas.errors import Malformed
from tests.schemas.codec.fake_libpq import CONNECTION, END, WAIT, FakeLibpq

pytestmark = pytest.mark.skipif(implementation.compiled is None, reason="installed without a C compiler")

FAILED = -2
KEEPALIVE = struct.pack("!BQqB", ord("k"), 900, 0, 1)


def frame(end: int, data: bytes) -> bytes:
    return struct.pack("!BQQq", ord("w"), 0, end, 0) + data


def take(libpq: FakeLibpq, most: int = 100, room: int = 1 << 30) -> Buffered:
    found = Buffered(*implementation.compiled.libpq_messages(libpq.functions, CONNECTION, most, room))
    assert libpq.lent == 0
    return found


def test_messages_end_where_nothing_else_was_received() -> None:
    libpq = FakeLibpq([frame(5, b"I"), frame(1 << 63, b"data\0"), WAIT, frame(7, b"x")])
    assert take(libpq) == ([b"I", b"data\0"], 1 << 63, 26 + 30, 0, None)
    assert take(libpq) == ([], 0, 0, 0, None)


@pytest.mark.parametrize("result", [END, FAILED])
def test_messages_before_the_end_of_the_stream_are_returned(result: int) -> None:
    libpq = FakeLibpq([frame(5, b"I"), result])
    assert take(libpq) == ([b"I"], 5, 26, result, None)
    assert take(libpq) == ([], 0, 0, result, None)


@pytest.mark.parametrize("other", [KEEPALIVE, b"k", b"x", b"w", frame(6, b"")])
def test_messages_end_with_a_frame_of_another_type(other: bytes) -> None:
    libpq = FakeLibpq([frame(5, b"I"), other, frame(7, b"U")])
    assert take(libpq) == ([b"I"], 5, 26 + len(other), len(other), other)
    assert take(libpq) == ([b"U"], 7, 26, END, None)


def test_messages_end_at_the_limits() -> None:
    frames = [frame(number, b"I") for number in (5, 6, 7)]
    assert take(FakeLibpq(frames), most=2) == ([b"I", b"I"], 6, 52, 26, None)
    assert take(FakeLibpq(frames), room=27) == ([b"I", b"I"], 6, 52, 26, None)
    assert take(FakeLibpq(frames), room=26) == ([b"I"], 5, 26, 26, None)
    assert take(FakeLibpq(frames), most=0).messages == take(FakeLibpq(frames), room=0).messages == []


class Connection:
    """psycopg's PGconn as far as `take_one` calls it."""

    def __init__(self, *frames: bytes | int) -> None:
        self._frames = list(frames)

    def get_copy_data(self, asynchronous: int) -> tuple[int, memoryview]:
        assert asynchronous == 1
        taken = self._frames.pop(0)
        return (taken, memoryview(b"")) if isinstance(taken, int) else (len(taken), memoryview(taken))


@pytest.mark.parametrize("each", [frame(5, b"I"), KEEPALIVE, WAIT, END])
def test_psycopg_takes_the_same_frames(each: Any) -> None:
    assert take_one(Connection(each)) == take(FakeLibpq([each]), most=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("each", [b"w", frame(6, b""), b"k", b"x"])
def test_invalid_frame_is_refused_either_way(each: bytes) -> None:
    with pytest.raises(Malformed) as one:
        take_one(Connection(each))  # type: ignore[arg-type]
    other = take(FakeLibpq([each])).other
    assert other is not None
    with pytest.raises(Malformed) as compiled:
        parse(other)
    assert str(one.value) == str(compiled.value)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), TypeError),
        (((1, 2), 1, 1, 1), TypeError),
        (((1, 0, 3), 1, 1, 1), ValueError),
        (((1, 2, 3), 0, 1, 1), ValueError),
        (((1, 2, 3), 1, "1", 1), TypeError),
        (((1, 2, 3), 1, 1, 1 << 70), OverflowError),
    ],
)
def test_other_arguments_are_refused(arguments: tuple[object, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        implementation.compiled.libpq_messages(*arguments)
