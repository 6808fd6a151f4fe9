"""The frames of streaming replication against bytes built by hand."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.stream.frames import Keepalive, XLogData, parse, status_update
from schemas.errors import Malformed
from schemas.positions import Lsn

MS = 1_700_000_000_123
CLOCK_US = 753_315_200_123_456


def test_xlogdata_is_parsed() -> None:
    frame = b"w" + struct.pack("!QQq", 5, 6, CLOCK_US) + b"payload"
    for form in (frame, memoryview(frame)):
        got = parse(form)
        assert (type(got), got) == (XLogData, (5, 6, MS, b"payload"))
        assert type(got) is XLogData
        assert type(got.data) is bytes


@pytest.mark.parametrize("reply", [False, True])
def test_keepalive_is_parsed(reply: bool) -> None:
    got = parse(b"k" + struct.pack("!QqB", 7, CLOCK_US, reply))
    assert (type(got), got) == (Keepalive, (7, MS, reply))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "frame of 0 bytes .* type 0 is unknown"),
        (b"z", "type 122 is unknown"),
        (b"w" + bytes(24), "XLogData frame of 25 bytes"),
        (b"k" + bytes(16), "keepalive frame of 17 bytes"),
        (b"k" + bytes(18), "keepalive frame of 19 bytes"),
    ],
)
def test_a_broken_frame_is_refused(frame: bytes, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        parse(frame)


@given(st.binary(max_size=60), st.sampled_from([b"", b"w", b"k"]))
def test_random_bytes_give_a_frame_or_malformed(garbage: bytes, kind: bytes) -> None:
    with contextlib.suppress(Malformed):
        parse(kind + garbage)


def test_status_update_is_encoded() -> None:
    got = status_update(written=Lsn(3), flushed=Lsn(2), applied=Lsn(1), clock_ms=MS, reply_requested=True)
    assert got == b"r" + struct.pack("!QQQqB", 3, 2, 1, CLOCK_US - 456, 1)
