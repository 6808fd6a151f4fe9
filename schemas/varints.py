"""Encodes and decodes Avro's integers: zigzag, then seven bits per byte, lowest first ("Binary encoding").

The tables use 2 MB of memory for one lookup per fourteen bits instead of a loop per seven.
"""

from __future__ import annotations

from typing import Final

_LOW, _HIGH = -(1 << 63), (1 << 63) - 1


def encode_unsigned(number: int) -> bytes:
    """Return `number` (0 or more) as a base-128 varint."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


FINAL: Final[list[bytes]] = [encode_unsigned(number) for number in range(1 << 14)]
"""Varints of up to 14 bits."""

MORE: Final[list[bytes]] = [bytes((low & 0x7F | 0x80, low >> 7 | 0x80)) for low in range(1 << 14)]
"""The low 14 bits of a longer varint: two bytes with continuation bits."""


def encode_long(number: int) -> bytes:
    """Return an Avro int or long.

    Raises OverflowError if `number` needs more than 64 bits.
    """
    zigzag = number << 1 if number >= 0 else ~(number << 1)
    if zigzag < 1 << 14:
        return FINAL[zigzag]
    if zigzag < 1 << 28:
        return MORE[zigzag & 0x3FFF] + FINAL[zigzag >> 14]
    if not _LOW <= number <= _HIGH:
        raise OverflowError("more than 64 bits")
    return MORE[zigzag & 0x3FFF] + MORE[zigzag >> 14 & 0x3FFF] + encode_unsigned(zigzag >> 28)


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
