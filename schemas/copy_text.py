r"""Encodes PostgreSQL's COPY text format by columns: tab between fields, `\N` for null, backslash escapes.

Source: "COPY", section "Text Format", of PostgreSQL's documentation. A column of a block is encoded in one C-level
loop: `map` over a memo if values repeat, else a comprehension over tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from schemas.column_types import ColumnType, Kind
from schemas.values import (
    DAYS,
    MINUTES,
    NULL,
    QUICK_HIGH,
    QUICK_LOW,
    SECONDS,
    SMALL,
    START,
    WHOLE_SECONDS,
    Encode,
    LengthMemo,
    Memo,
    quick_encoder,
    timestamp_shape,
)
from schemas.varints import FINAL, MORE

Column = Callable[[Sequence[bytes], bool], list[bytes]]
r"""A column's raw fields, and whether they have no escape but `\N` → their Avro bytes, in order."""

NULL_FIELD: Final = rb"\N"
_ESCAPES: Final = {
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
    b"\\": b"\\",
}
_find_escape: Final = re.compile(rb"\\(.?)", re.DOTALL)
_SAMPLE: Final = 64


def _unescaped(found: re.Match[bytes]) -> bytes:
    try:
        return _ESCAPES[found[1]]
    except KeyError:
        raise ValueError("an escape that COPY does not write") from None


def unescape(field: bytes) -> bytes:
    r"""Return a field's text; not for `\N`.

    Raises ValueError for an escape that COPY TO never writes.
    """
    return _find_escape.sub(_unescaped, field) if b"\\" in field else field


def field_encoder(column: ColumnType) -> Encode:
    """Return the encoder of one raw field, null or not; it raises the errors of the values' encoder."""
    encode = quick_encoder(column)

    def encode_field(field: bytes) -> bytes:
        return NULL if field == NULL_FIELD else encode(unescape(field))

    return encode_field


def column_encoder(column: ColumnType) -> Column:
    """Return the encoder of a column of this type; it raises the errors of the values' encoder."""
    one = field_encoder(column)
    memo = Memo(one, {NULL_FIELD: NULL}).__getitem__
    direct = _direct(column, one)

    def encode(fields: Sequence[bytes], clean: bool) -> list[bytes]:
        return list(map(memo, fields)) if _repeats(fields) else direct(fields, clean)

    return encode


def _repeats(fields: Sequence[bytes]) -> bool:
    """Whether a memo would mostly hit for this column; only a matter of speed."""
    sample = fields[:: len(fields) // _SAMPLE + 1]
    return len(set(sample)) * 2 <= len(sample)


def _direct(column: ColumnType, one: Encode) -> Column:
    if column.kind is Kind.TEXT:
        return _direct_text(one)
    if column.kind in (Kind.INT, Kind.LONG):
        return _direct_integer(one, column.high)
    if column.kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ):
        return _direct_timestamp(one, *timestamp_shape(column))
    return lambda fields, _: list(map(one, fields))


def _direct_text(one: Encode) -> Column:
    lengths = LengthMemo()

    def encode(fields: Sequence[bytes], clean: bool) -> list[bytes]:
        if not clean:
            return [one(field) if b"\\" in field else lengths[len(field)] + field for field in fields]
        return [NULL if field == NULL_FIELD else lengths[len(field)] + field for field in fields]

    return encode


def _direct_integer(one: Encode, high: int) -> Column:
    start, small, final = START, SMALL, FINAL
    limit = min(1 << 28, (high + 1) << 1)

    def encode(fields: Sequence[bytes], _: bool) -> list[bytes]:
        # The short cut handles unsigned values that fit 28 bits and the type; `one` handles the others.
        return [
            one(field)
            if not field.isdigit() or (bits := int(field) << 1) >= limit
            else start[bits & 0x3FFF] + final[bits >> 14]
            if bits >= 0x4000
            else small[bits]
            for field in fields
        ]

    return encode


def _direct_timestamp(one: Encode, length: int, zone: bytes) -> Column:
    days, minutes, seconds, whole_seconds = DAYS, MINUTES, SECONDS, WHOLE_SECONDS
    start, more, final = START, MORE, FINAL
    low, high = QUICK_LOW, QUICK_HIGH
    whole = length - 7

    def encode(fields: Sequence[bytes], _: bool) -> list[bytes]:
        # The two most common forms of `quick_encoder`, inlined to save a call per field.
        return [
            start[bits & 0x3FFF] + more[bits >> 14 & 0x3FFF] + more[bits >> 28 & 0x3FFF] + final[bits >> 42]
            if (
                (size := len(field)) == length
                and field[26:] == zone
                and (decimals := field[20:26]).isdigit()
                and low
                <= (bits := (days[field[:10]] + minutes[field[10:17]] + seconds[field[17:20]] + int(decimals)) << 1)
                < high
            )
            or (
                size == whole
                and field[19:] == zone
                and low
                <= (bits := (days[field[:10]] + minutes[field[10:17]] + whole_seconds[field[17:19]]) << 1)
                < high
            )
            else NULL
            if size == 2 and field == NULL_FIELD
            else one(field)
            for field in fields
        ]

    return encode
