"""Encodes single values of PostgreSQL's text output as Avro with the union branch.

A value that its Avro type cannot represent is null; its text then belongs into the event's `exact`.

Every encoder takes text of a session with `DateStyle = ISO`, `TimeZone = UTC`, `extra_float_digits` at its default and
`client_encoding = UTF8`, as replication and the snapshot set them, and raises ValueError (or OverflowError) for text
that is not a value of the type.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from datetime import date
from typing import Final

from schemas.codec.varints import encode_long
from schemas.column_types import ColumnType, Kind

Encode = Callable[[bytes], bytes]
"""Text → Avro bytes, NULL if Avro's type cannot represent it; ValueError or OverflowError if it is not a value of the
type."""

NULL: Final = b"\x00"
VALUE: Final = b"\x02"
"""The union branches of a column."""

_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
_DAY_MICROS: Final = 86_400_000_000

_DATE: Final = rb"(\d{4,7})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
_CLOCK: Final = rb"([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d{1,6}))?"
_match_date: Final = re.compile(_DATE + rb"( BC)?").fullmatch
_match_time: Final = re.compile(_CLOCK).fullmatch
_match_timestamp: Final = re.compile(_DATE + b" " + _CLOCK + rb"()( BC)?").fullmatch
_match_timestamptz: Final = re.compile(_DATE + b" " + _CLOCK + rb"(\+00)( BC)?").fullmatch
_match_integer: Final = re.compile(rb"-?\d+").fullmatch
_match_float: Final = re.compile(rb"-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|Infinity)|NaN").fullmatch
_match_decimal: Final = re.compile(rb"(-?\d+)(?:\.(\d+))?").fullmatch
_match_uuid: Final = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_INFINITIES: Final = (b"infinity", b"-infinity")


def encode_text(text: bytes) -> bytes:
    """Return an Avro string."""
    return encode_long(len(text)) + text


def _boolean(text: bytes) -> bytes:
    if text == b"t":
        return b"\x02\x01"
    if text == b"f":
        return b"\x02\x00"
    raise ValueError("not a boolean")


def _integer(low: int, high: int) -> Encode:
    def encode(text: bytes) -> bytes:
        if not _match_integer(text) or not low <= (number := int(text)) <= high:
            raise ValueError("not an integer in the range of its type")
        return VALUE + encode_long(number)

    return encode


def _floating(form: str) -> Encode:
    pack = struct.Struct(form).pack

    def encode(text: bytes) -> bytes:
        if not _match_float(text):
            raise ValueError("not a floating-point number")
        return VALUE + pack(float(text))

    return encode


def _text(text: bytes) -> bytes:
    return VALUE + encode_text(text)


def _uuid(text: bytes) -> bytes:
    if not _match_uuid(text):
        raise ValueError("not a uuid")
    return b"\x02\x48" + text


def _decimal(precision: int, scale: int) -> Encode:
    def encode(text: bytes) -> bytes:
        found = _match_decimal(text)
        if found is None:
            if text in (b"NaN", b"Infinity", b"-Infinity"):
                return NULL
            raise ValueError("not a decimal")
        fraction = found[2] or b""
        digits = found[1] + fraction
        if len(fraction) != scale or len(digits.lstrip(b"-0")) > precision:
            raise ValueError("outside the precision or scale of its type")
        unscaled = int(digits)
        raw = unscaled.to_bytes((unscaled.bit_length() + 8) // 8, "big", signed=True)
        return VALUE + encode_text(raw)

    return encode


def _day(found: re.Match[bytes]) -> int:
    return date(int(found[1]), int(found[2]), int(found[3])).toordinal() - _EPOCH_DAY


def _micros(hour: bytes, minute: bytes, second: bytes, fraction: bytes | None) -> int:
    whole = (int(hour) * 60 + int(minute)) * 60 + int(second)
    return whole * 1_000_000 + (int(fraction.ljust(6, b"0")) if fraction else 0)


def _outside(found: re.Match[bytes], era: bytes | None) -> bool:
    """Whether the year is outside 1 to 9999, the range of readers' calendars."""
    return era is not None or len(found[1]) > 4


def _date(text: bytes) -> bytes:
    found = _match_date(text)
    if found is None:
        if text in _INFINITIES:
            return NULL
        raise ValueError("not a date")
    return NULL if _outside(found, found[4]) else VALUE + encode_long(_day(found))


def _time(text: bytes) -> bytes:
    if text == b"24:00:00":
        return NULL
    found = _match_time(text)
    if found is None:
        raise ValueError("not a time of day")
    return VALUE + encode_long(_micros(*found.groups()))


def _timestamp(match: Callable[[bytes], re.Match[bytes] | None]) -> Encode:
    def encode(text: bytes) -> bytes:
        found = match(text)
        if found is None:
            if text in _INFINITIES:
                return NULL
            raise ValueError("not a timestamp in ISO form and UTC")
        if _outside(found, found[9]):
            return NULL
        micros = _day(found) * _DAY_MICROS + _micros(found[4], found[5], found[6], found[7])
        return VALUE + encode_long(micros)

    return encode


_PLAIN: Final[dict[Kind, Encode]] = {
    Kind.BOOLEAN: _boolean,
    Kind.FLOAT: _floating("<f"),
    Kind.DOUBLE: _floating("<d"),
    Kind.TEXT: _text,
    Kind.UUID: _uuid,
    Kind.DATE: _date,
    Kind.TIME: _time,
    Kind.TIMESTAMP: _timestamp(_match_timestamp),
    Kind.TIMESTAMPTZ: _timestamp(_match_timestamptz),
}


def value_encoder(column: ColumnType) -> Encode:
    """Return the encoder of a column's values that are not null."""
    if column.kind in (Kind.INT, Kind.LONG):
        return _integer(column.low, column.high)
    if column.kind is Kind.DECIMAL:
        return _decimal(column.precision, column.scale)
    return _PLAIN[column.kind]
