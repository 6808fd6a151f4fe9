"""Decodes pgoutput's Insert, Update and Delete messages of one relation."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from producers.stream.messages import Delete, Insert, Update, Values
from producers.stream.pgoutput_fields import columns, identity_only, malformed, trailing
from schemas.events import Relation

CHANGES: Final = frozenset((b"I", b"U", b"D"))

CHANGE: Final = struct.Struct("!IBH")
"""The head of a change after its type byte, or after its xid in a stream block: oid, marker, number of columns."""
_NEW = struct.Struct("!BH")
_INT32 = struct.Struct("!I")
_new = tuple.__new__  # half the cost of a named tuple's constructor, which calls it


class RowChanges:
    """The decoder of changes of a relation as it was described.

    `identity` are the indexes of the columns in its replica identity; the bytes of `identity_mask` say it of each.
    """

    __slots__ = ("_identity", "_width", "identity_mask", "relation")

    def __init__(self, relation: Relation, identity: tuple[int, ...]) -> None:
        self.relation = relation
        self._width = len(relation.columns)
        self._identity = identity
        self.identity_mask = bytes(index in identity for index in range(self._width))

    def decode(self, data: bytes, place: int) -> Insert | Update | Delete:
        """Return the change whose oid is at `place`: 1, and 5 in a stream block. Raises Malformed."""
        try:
            xid = None if place == 1 else _INT32.unpack_from(data, 1)[0]
            _, marker, count = CHANGE.unpack_from(data, place)
            pos = place + CHANGE.size
            if data[0] == 0x49:  # I
                after = self._last(data, pos, (marker, count), b"N")
                return _new(Insert, (self.relation, after, xid))
            if data[0] == 0x44:  # D
                before = self._last(data, pos, (marker, count), b"KO")
                return _new(Delete, (self.relation, self._old(before, marker), xid))
            return self._update(data, pos, (marker, count), xid)
        except struct.error:
            raise malformed(data, len(data), "it ends early") from None

    def _update(self, data: bytes, pos: int, head: tuple[int, int], xid: int | None) -> Update:
        before = None
        if head[0] != 0x4E:  # N
            self._check(data, pos, head, b"NKO")
            old, pos = columns(data, pos, self._width)
            before = self._old(old, head[0])
            head = _NEW.unpack_from(data, pos)
            pos += _NEW.size
        after = self._last(data, pos, head, b"N")
        return _new(Update, (self.relation, before, after, xid))

    def _old(self, before: Values, marker: int) -> Values:
        return identity_only(before, self._identity) if marker == 0x4B else before  # K

    def _last(self, data: bytes, pos: int, head: tuple[int, int], markers: bytes) -> Values:
        """Return the tuple at `pos`, with which the message ends."""
        self._check(data, pos, head, markers)
        values, pos = columns(data, pos, self._width)
        if pos != len(data):
            raise trailing(data, pos)
        return values

    def _check(self, data: bytes, pos: int, head: tuple[int, int], markers: bytes) -> None:
        """Raise the error in the head of the tuple that starts at `pos`."""
        marker, count = head
        if marker not in markers:
            raise malformed(data, pos - 3, f"tuple marker {bytes((marker,))!r} is not one of {markers!r}")
        if count != self._width:
            table = self.relation.qualified_name
            raise malformed(data, pos - 2, f"{count} columns for {table}, which has {self._width}")


def end_of_run(payloads: Sequence[bytes], start: int, place: int) -> int:
    """Return the end of the changes from `start` on that are of the same relation, whose oid is at `place`."""
    end = place + 4
    head = payloads[start][:end]
    oid = head[place:]
    for index in range(start + 1, len(payloads)):
        data = payloads[index]
        # The usual case first: an operation like the first one.
        if data[:end] != head and (data[place:end] != oid or data[:1] not in CHANGES):
            return index
    return len(payloads)
