"""Decodes Avro cells to Python values: a cell is a column's union with its branch byte.

The values are the same as fastavro's (tests/schemas/test_projection.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal
from typing import Any, Final
from uuid import UUID

from schemas.avro import type_name
from schemas.codec.header import read_string
from schemas.codec.varints import decode_long

Read = Callable[[bytes, int], tuple[Any, int]]
"""Bytes and a position → the value there and the position after it; ValueError, IndexError or OverflowError if there is
none."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_NAIVE: Final = datetime(1970, 1, 1)
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_DAY_MICROS: Final = 86_400_000_000


def read_bytes(data: bytes, position: int) -> tuple[bytes, int]:
    """Return the bytes field at `position` and the position after it."""
    length, start = decode_long(data, position)
    end = start + length
    if length < 0 or end > len(data):
        raise IndexError("bytes longer than their record")
    return data[start:end], end


def _read_null(_: bytes, position: int) -> tuple[None, int]:
    return None, position


def _read_boolean(data: bytes, position: int) -> tuple[bool, int]:
    byte = data[position]
    if byte > 1:
        raise ValueError("not a boolean")
    return byte == 1, position + 1


def _read_packed(form: str, width: int) -> Read:
    unpack = struct.Struct(form).unpack_from

    def read(data: bytes, position: int) -> tuple[float, int]:
        end = position + width
        if end > len(data):
            raise IndexError("a truncated number")
        return unpack(data, position)[0], end

    return read


def _read_converted(read: Read, convert: Callable[[Any], Any]) -> Read:
    def read_converted(data: bytes, position: int) -> tuple[Any, int]:
        raw, position = read(data, position)
        return convert(raw), position

    return read_converted


def _time(micros: int) -> time:
    if not 0 <= micros < _DAY_MICROS:
        raise ValueError("not a time of day")
    seconds, micros = divmod(micros, 1_000_000)
    return time(seconds // 3600, seconds // 60 % 60, seconds % 60, micros)


def _decimal(precision: int, scale: int) -> Callable[[bytes], Decimal]:
    context = Context(prec=precision)

    def convert(raw: bytes) -> Decimal:
        unscaled = int.from_bytes(raw, "big", signed=True)
        if abs(unscaled) >= 10**precision:
            raise ValueError("more digits than the type has")
        return Decimal(unscaled).scaleb(-scale, context)

    return convert


_PLAIN: Final[dict[str, Read]] = {
    "null": _read_null,
    "boolean": _read_boolean,
    "int": decode_long,
    "long": decode_long,
    "float": _read_packed("<f", 4),
    "double": _read_packed("<d", 8),
    "string": read_string,
    "bytes": read_bytes,
}
_LOGICAL: Final[dict[str, Callable[[Any], Any]]] = {
    "uuid": UUID,
    "date": lambda day: date.fromordinal(day + _EPOCH_DAY),
    "time-micros": _time,
    "timestamp-micros": lambda micros: _EPOCH + timedelta(microseconds=micros),
    "local-timestamp-micros": lambda micros: _EPOCH_NAIVE + timedelta(microseconds=micros),
}


def reader(avro: Any) -> Read:
    """Return the reader of a type that a column may have; KeyError for any other type."""
    if isinstance(avro, list):
        return _union(avro)
    read = _PLAIN[type_name(avro)]
    logical = None if isinstance(avro, str) else avro.get("logicalType")
    if logical is None:
        return read
    if logical == "decimal":
        return _read_converted(read, _decimal(avro["precision"], avro.get("scale", 0)))
    return _read_converted(read, _LOGICAL[logical])


def _union(branches: list[Any]) -> Read:
    readers = [reader(branch) for branch in branches]

    def read(data: bytes, position: int) -> tuple[Any, int]:
        branch, position = decode_long(data, position)
        if branch < 0:
            raise ValueError("no such branch")
        return readers[branch](data, position)

    return read
