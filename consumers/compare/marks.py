"""Makes marks of rows and records, by which a table and its topic are compared.

A mark has 24 bytes: the hash of a key, that of a row, and a place: where the row was read. So what the comparison keeps
of a row does not depend on its width, and marks can be sorted into parts by the hashes of their keys and compared part
by part. The hashes have a secret, since a wrong row could otherwise be made that has the right one's hash.

In C if the codec is compiled (schemas/codec/extension/marks.c), by another hash: the marks of one comparison are made
by one implementation (`HASHES`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

from schemas.codec import implementation
from schemas.codec.encoder import Encoder
from schemas.codec.varints import decode_long
from schemas.wire import HEADER_BYTES

GONE: Final = 0
"""In place of a row's hash: the record says that there is no row."""
ODD: Final = 1
"""In place of a row's hash: only reading the record can compare it."""
NOWHERE: Final = (1 << 64) - 1
"""In place of a place: the key is not there."""
SECRET_BYTES: Final = 16
HASHES: Final = f"{implementation.name} 2"
"""By what hashes are made, and the version of what is kept for a later process, which continues no other."""

MARK: Final = struct.Struct("=QQQ")
PARTITION_BITS: Final = 48
"""A record's place is its partition, above its offset of this many bits."""

_NEW_ROW: Final = b"\x00\x00\x02"
"""The bytes after a record's times if no value is left out, the old row is absent and the new row is present."""
_OP: Final = HEADER_BYTES + 1
_TRANSACTION: Final = 2
"""The branch of an event that has a transaction."""
_FLAGS: Final = frozenset((b"\x08true", b"\x0afalse"))

Known = list[tuple[bytes, bool]]
"""The bytes with which records begin, up to their table's name, and whether rows of such records can be compared."""


def topic_marks_in_python(
    records: list[Any],
    ends: dict[int, int],
    reached: dict[int, int],
    known: Known,
    learn: Callable[[bytes], object],
    secret: bytes,
) -> tuple[bytes, list[Any]]:
    """Return the marks of the records before `ends` (partition → offset), and the others that have to be looked at.

    The others are errors, and records whose key has no column. `reached` is set to the offsets after the records.
    `learn` is called with a value that begins like none of `known`, and adds its beginning if it is an event's.
    """
    marks, others = bytearray(), []
    for record in records:
        if record.error() is not None:
            others.append(record)
            continue
        partition, offset = record.partition(), record.offset()
        if partition not in ends:
            continue
        reached[partition] = min(offset + 1, ends[partition])
        if offset >= ends[partition]:
            continue
        key, value = record.key(), record.value()
        if key is None or len(key) <= HEADER_BYTES:
            if value is not None:
                others.append(record)
            continue
        row = GONE if value is None else _row(value, known, learn, secret)
        marks += MARK.pack(_hashed(key[HEADER_BYTES:], secret), row, partition << PARTITION_BITS | offset)
    return bytes(marks), others


def _row(value: bytes, known: Known, learn: Callable[[bytes], object], secret: bytes) -> int:
    """Return what a mark has of a value's row."""
    found = _start(value, known)
    if found is None:
        learn(value)
        found = _start(value, known)
    if found is None:
        return ODD
    start, comparable = found
    try:
        position = _after_position(value, len(start))
        if value[_OP] in b"dt":
            return GONE
        _, position = decode_long(value, position)
    except (IndexError, ValueError):
        return ODD
    if not comparable or not value.startswith(_NEW_ROW, position):
        return ODD
    return _row_hash(value[position + len(_NEW_ROW) :], secret)


def _after_position(value: bytes, position: int) -> int:
    """Return where the position of an event ends, whose table's name ends at `position`.

    Raises IndexError or ValueError if it is no event.
    """
    branch = value[position]
    position += 1
    if branch == _TRANSACTION:
        _, position = decode_long(value, position)
    elif branch:
        raise ValueError("no such branch")
    _, position = decode_long(value, position)
    flag = next((each for each in _FLAGS if value.startswith(each, position)), None)
    if flag is None:
        raise ValueError("no boolean")
    position += len(flag)
    for _ in range(2):
        _, position = decode_long(value, position)
    return position


def _start(value: bytes, known: Known) -> tuple[bytes, bool] | None:
    if len(value) <= _OP:
        return None
    return next((each for each in known if value.startswith(each[0])), None)


def table_marks_in_python(keys: list[bytes], rows: list[bytes], place: int, secret: bytes) -> bytes:
    """Return the marks of rows as they were encoded, of message keys and the values from the row on."""
    return b"".join(
        MARK.pack(_hashed(key[HEADER_BYTES:], secret), _row_hash(row, secret), place)
        for key, row in zip(keys, rows, strict=True)
    )


def copy_marks_in_python(encoder: Encoder, lines: bytes, place: int, secret: bytes) -> bytes:
    """Return the marks of whole lines of COPY. Raises Malformed as the encoder does."""
    keys, rows = encoder.encode_copy_chunk(lines, b"")
    return table_marks(keys, rows, place, secret)


def copy_marks(encoder: Encoder, lines: bytes, place: int, secret: bytes) -> bytes:
    """Return what `copy_marks_in_python` does, in C without an object for each key and row if that can be."""
    made = None if encoder.plan is None else encoder.plan.copy_marks(lines, place, secret)
    return copy_marks_in_python(encoder, lines, place, secret) if made is None else made


def scatter_in_python(marks: bytes, parts: list[bytearray]) -> None:
    """Append each mark to its part, by the first bits of its key's hash; the number of parts is a power of two."""
    bits = (len(parts) - 1).bit_length()
    if len(parts) != 1 << bits:
        raise ValueError("parts that are no power of two")
    for mark in MARK.iter_unpack(marks):
        parts[mark[0] >> (64 - bits)] += MARK.pack(*mark)


def differences_in_python(topic: bytes, later: bytes, table: bytes) -> bytes:
    """Return the keys that differ, each as a mark of its hash, its place in the topic and that in the table.

    `topic` are the records from before the table was read, `later` those after them; a row may equal the last of
    either: it is compared with the topic at two moments.
    """
    before: dict[int, int] = {}
    after: dict[int, tuple[int, int]] = {}
    for key, row, place in MARK.iter_unpack(topic):
        before[key] = row
        after[key] = row, place
    for key, row, place in MARK.iter_unpack(later):
        after[key] = row, place
    found = bytearray()
    seen: set[int] = set()
    for key, row, place in MARK.iter_unpack(table):
        seen.add(key)
        latest, where = after.get(key, (GONE, NOWHERE))
        if row not in (before.get(key, GONE), latest):
            found += MARK.pack(key, where, place)
    for key, (latest, where) in after.items():
        if key not in seen and GONE not in (before.get(key, GONE), latest):
            found += MARK.pack(key, where, NOWHERE)
    return bytes(found)


def _hashed(data: bytes, secret: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8, key=secret).digest())


def _row_hash(row: bytes, secret: bytes) -> int:
    found = _hashed(row, secret)
    return found if found > ODD else found + 2


_of: Final = implementation.compiled
topic_marks: Final = topic_marks_in_python if _of is None else _of.topic_marks
"""`topic_marks_in_python`, or its C version."""
table_marks: Final = table_marks_in_python if _of is None else _of.table_marks
"""`table_marks_in_python`, or its C version."""
scatter: Final = scatter_in_python if _of is None else _of.scatter
"""`scatter_in_python`, or its C version."""
differences: Final = differences_in_python if _of is None else _of.differences
"""`differences_in_python`, or its C version."""
