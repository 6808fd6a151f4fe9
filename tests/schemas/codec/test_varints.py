"""Integers encoded and decoded as by fastavro."""

from __future__ import annotations

from io import BytesIO

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codec.varints import decode_long, encode_long


@given(st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-20_000, 20_000)))
@settings(deadline=None)
def test_every_long_is_what_fastavro_writes(number: int) -> None:
    stream = BytesIO()
    fastavro.schemaless_writer(stream, "long", number)
    assert encode_long(number) == stream.getvalue()
    assert decode_long(b"\xff" + encode_long(number) + b"\xff", 1) == (number, 1 + len(stream.getvalue()))


def test_invalid_long_is_refused() -> None:
    with pytest.raises(OverflowError):
        encode_long(1 << 63)
    with pytest.raises(IndexError):
        decode_long(b"\xff\xff", 0)
    with pytest.raises(ValueError, match="64 bits"):
        decode_long(b"\xff" * 9 + b"\x7f", 0)
    with pytest.raises(ValueError, match="ten bytes"):
        decode_long(b"\xff" * 11, 0)
