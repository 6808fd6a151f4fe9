"""The five bytes in front of a record."""

from __future__ import annotations

import pytest

from schemas.errors import Malformed
from schemas.wire import split_wire, wire_header


def test_the_schema_id_comes_back() -> None:
    assert wire_header(258) == b"\0\0\0\1\2"
    assert split_wire(wire_header(258) + b"rest") == (258, 5)


@pytest.mark.parametrize("record", [b"", b"\0\0\0\0", b"\1\0\0\0\1", b'{"op":"c"}'])
def test_another_format_is_malformed(record: bytes) -> None:
    with pytest.raises(Malformed):
        split_wire(record)
