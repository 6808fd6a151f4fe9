"""Encodes and decodes Avro's integers: zigzag, then seven bits per byte, lowest first ("Binary encoding")."""

from __future__ import annotations

from typing import Final

_LOW: Final = -(1 << 63)
_HIGH: Final = (1 << 63) - 1


def encode_long(number: int) -> bytes:
    """Return an Avro int or long.

    Raises OverflowError if `number` needs more than 64 bits.
    """
    if not _LOW <= number <= _HIGH:
        raise OverflowError("more than 64 bits")
    zigzag = number << 1 if number >= 0 else ~(number << 1)
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def decode_long(data: bytes, position: int) -> tuple[int, int]:
    """Return the int or long at `position` and the position after it.

    Raises IndexError if the bytes end first, ValueError if it needs more than ten bytes or 64 bits.
    """
    byte = data[position]
    position += 1
    if byte < 0x80:
        return byte >> 1 ^ -(byte & 1), position
    number = byte & 0x7F
    shift = 7
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than ten bytes")
    if number >> 64:
        raise ValueError("a varint of more than 64 bits")
    return number >> 1 ^ -(number & 1), position
