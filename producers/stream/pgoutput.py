"""Decodes pgoutput messages: PostgreSQL's logical replication protocol, versions 1 to 4; no I/O.

`Decoder.decode` takes one message and returns one of `producers.stream.messages`; `Decoder.read` takes several, and
returns consecutive changes of a relation as one. Values stay undecoded bytes of their text form. Invalid messages raise
`schemas.errors.Malformed`, which names the message and the offset of the error, and leave the decoder unchanged.

Source: PostgreSQL 18, "Logical Replication Message Formats", and src/backend/replication/logical/proto.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from producers.stream import pgoutput_fields as fields
from producers.stream.messages import (
    Changes,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    RelationMessage,
    StreamAbort,
    StreamCommit,
    StreamPrepare,
    StreamStart,
    StreamStop,
    Truncate,
    TypeMessage,
    Update,
)
from producers.stream.pgoutput_fields import (
    NAMES,
    malformed,
    ms,
    no_flags,
    string,
    trailing,
    whole,
    with_gid,
)
from producers.stream.row_changes import CHANGE, CHANGES, RowChanges, end_of_run
from schemas.events import Column, Relation
from schemas.positions import Lsn

_IN_STREAM: Final = frozenset(b"MORYIUDTE")
"""Messages allowed in a stream block; all except Origin and Stream Stop have their xid there."""

_MESSAGE = struct.Struct("!BQ")
_TRUNCATE = struct.Struct("!IB")
_ATTRIBUTES = struct.Struct("!BH")
_TYPE = struct.Struct("!Ii")
_STREAM_START = struct.Struct("!IB")
_STREAM_COMMIT = struct.Struct("!IBQQq")
_STREAM_ABORT = struct.Struct("!II")
_STREAM_ABORT_AT = struct.Struct("!IIQq")
_PREPARE = struct.Struct("!BQQqI")
_INT32 = struct.Struct("!I")


class Decoder:
    """The decoder of one replication session; remembers relations and the open stream block.

    Relations are scoped as on the server: those described in a streamed transaction apply only to it until it commits,
    and are forgotten if it aborts.
    """

    def __init__(self) -> None:
        self._stream_xid: int | None = None
        self._committed: dict[int, RowChanges] = {}
        self._streamed: dict[int, dict[int, RowChanges]] = {}
        self._known = self._committed
        self._readers: dict[int, Callable[[bytes], Message]] = {
            ord("B"): fields.begin,
            ord("C"): fields.commit,
            ord("M"): self._message,
            ord("O"): fields.origin,
            ord("R"): self._relation,
            ord("Y"): self._type,
            ord("I"): self._change,
            ord("U"): self._change,
            ord("D"): self._change,
            ord("T"): self._truncate,
            ord("S"): self._stream_start,
            ord("E"): self._stream_stop,
            ord("c"): self._stream_commit,
            ord("A"): self._stream_abort,
            ord("b"): fields.begin_prepare,
            ord("P"): fields.prepare,
            ord("p"): self._stream_prepare,
            ord("K"): fields.commit_prepared,
            ord("r"): fields.rollback_prepared,
        }

    @property
    def stream_xid(self) -> int | None:
        """The transaction of the open stream block, or None."""
        return self._stream_xid

    def decode(self, payload: bytes | memoryview) -> Message:
        """Return the message in `payload` (the data of one XLogData frame, without the frame's header).

        Raises Malformed for anything else, and for messages that the state forbids: a change of a relation that was not
        described, a message that is not allowed in a stream block.
        """
        data = payload if type(payload) is bytes else bytes(payload)
        try:
            kind = data[0]
            if self._stream_xid is not None and kind in NAMES and kind not in _IN_STREAM:
                raise malformed(data, 0, f"it is not allowed in the stream block of {self._stream_xid}")
            return self._readers[kind](data)
        except struct.error:
            raise malformed(data, len(data), "it ends early") from None
        except KeyError:
            raise malformed(data, 0, f"its type byte {data[:1]!r} is unknown") from None
        except IndexError:
            raise malformed(data, 0, "it is empty") from None

    def read(self, payloads: list[bytes], start: int) -> tuple[Message, int]:
        """Return the message in the payload at `start`, and the index of the first payload after it.

        Two or more consecutive changes of one relation are one message, `Changes`, whose payloads are decoded later.
        Raises Malformed as `decode` does.
        """
        data = payloads[start]
        place = self._place
        if data[:1] in CHANGES and (known := self._known.get(int.from_bytes(data[place : place + 4]))) is not None:
            end = end_of_run(payloads, start, place)
            if end > start + 1:
                return Changes(known.relation, payloads[start:end], place, known), end
        return self.decode(data), start + 1

    def read_all(self, payloads: list[bytes]) -> list[Message]:
        """Return the messages in all payloads; see `read`."""
        messages: list[Message] = []
        start = 0
        while start < len(payloads):
            message, start = self.read(payloads, start)
            messages.append(message)
        return messages

    @property
    def _place(self) -> int:
        """Where a change's oid is."""
        return 1 if self._stream_xid is None else 5

    def _change(self, data: bytes) -> Insert | Update | Delete:
        place = self._place
        oid, _, _ = CHANGE.unpack_from(data, place)
        known = self._known.get(oid)
        if known is None:
            raise malformed(data, 1, f"relation {oid} was never described")
        return known.decode(data, place)

    # All other messages.

    def _xid(self, data: bytes) -> tuple[int | None, int]:
        """Return the message's own xid (None outside a stream block) and where its body starts."""
        if self._stream_xid is None:
            return None, 1
        return _INT32.unpack_from(data, 1)[0], 5

    def _message(self, data: bytes) -> LogicalMessage:
        xid, pos = self._xid(data)
        flags, lsn = _MESSAGE.unpack_from(data, pos)
        if flags > 1:
            raise malformed(data, pos, f"flags {flags} are unknown")
        prefix, pos = string(data, pos + 9)
        size = _INT32.unpack_from(data, pos)[0]
        if pos + 4 + size != len(data):
            raise malformed(data, pos, f"content of {size} bytes, where {len(data) - pos - 4} follow")
        return LogicalMessage(flags == 1, Lsn(lsn), prefix, data[pos + 4 :], xid)

    def _relation(self, data: bytes) -> RelationMessage:
        xid, pos = self._xid(data)
        oid = _INT32.unpack_from(data, pos)[0]
        schema, pos = string(data, pos + 4)
        table, pos = string(data, pos)
        identity, count = _ATTRIBUTES.unpack_from(data, pos)
        if identity not in b"dnfi":
            raise malformed(data, pos, f"replica identity {bytes((identity,))!r} is not one of b'dnfi'")
        pos += 3
        described = []
        keys = []
        for index in range(count):
            if pos == len(data):
                raise malformed(data, pos, f"{count} columns are announced, {index} are there")
            if data[pos] & 1:
                keys.append(index)
            name, pos = string(data, pos + 1)
            type_oid, modifier = _TYPE.unpack_from(data, pos)
            pos += 8
            described.append(Column(name, type_oid, modifier))
        if pos != len(data):
            raise trailing(data, pos)
        relation = Relation(
            oid=oid,
            schema=schema or "pg_catalog",  # the wire's short form of it
            table=table,
            replica_identity=chr(identity),
            columns=tuple(described),
            identity_columns=tuple(described[index].name for index in keys),
        )
        known = self._known.get(oid) or self._committed.get(oid)
        if known is not None and known.relation == relation:
            relation = known.relation  # so that callers can cache by identity
        self._known[oid] = RowChanges(relation, tuple(keys))
        return RelationMessage(relation, xid)

    def _type(self, data: bytes) -> TypeMessage:
        xid, pos = self._xid(data)
        oid = _INT32.unpack_from(data, pos)[0]
        schema, pos = string(data, pos + 4)
        name, pos = string(data, pos)
        if pos != len(data):
            raise trailing(data, pos)
        return TypeMessage(oid, schema or "pg_catalog", name, xid)

    def _truncate(self, data: bytes) -> Truncate:
        xid, pos = self._xid(data)
        count, options = _TRUNCATE.unpack_from(data, pos)
        if options > 3:
            raise malformed(data, pos + 4, f"options {options} are unknown")
        pos += 5
        if pos + 4 * count != len(data):
            raise malformed(data, pos, f"{count} relations are announced, {len(data) - pos} bytes follow")
        relations = []
        for start in range(pos, len(data), 4):
            oid = _INT32.unpack_from(data, start)[0]
            known = self._known.get(oid)
            if known is None:
                raise malformed(data, start, f"relation {oid} was never described")
            relations.append(known.relation)
        return Truncate(tuple(relations), bool(options & 1), bool(options & 2), xid)

    def _stream_start(self, data: bytes) -> StreamStart:
        xid, first = whole(data, _STREAM_START)
        if first > 1:
            raise malformed(data, 5, f"first segment is {first}, neither 0 nor 1")
        self._stream_xid = xid
        if first:
            self._streamed[xid] = {}
        self._known = self._streamed.setdefault(xid, {})
        return StreamStart(xid, first == 1)

    def _stream_stop(self, data: bytes) -> StreamStop:
        if len(data) != 1:
            raise trailing(data, 1)
        if self._stream_xid is None:
            raise malformed(data, 0, "no stream block is open")
        self._stream_xid = None
        self._known = self._committed
        return StreamStop()

    def _stream_commit(self, data: bytes) -> StreamCommit:
        xid, flags, commit_lsn, end_lsn, clock = whole(data, _STREAM_COMMIT)
        no_flags(data, 5, flags)
        self._committed.update(self._streamed.pop(xid, {}))
        return StreamCommit(xid, commit_lsn, end_lsn, ms(clock))

    def _stream_abort(self, data: bytes) -> StreamAbort:
        lsn = clock = None
        if len(data) == 1 + _STREAM_ABORT.size:
            xid, subxid = _STREAM_ABORT.unpack_from(data, 1)
        else:
            xid, subxid, lsn, clock = whole(data, _STREAM_ABORT_AT)
        if xid == subxid:
            self._streamed.pop(xid, None)
        return StreamAbort(xid, subxid, lsn, None if clock is None else ms(clock))

    def _stream_prepare(self, data: bytes) -> StreamPrepare:
        flags, prepare_lsn, end_lsn, clock, xid, gid = with_gid(data, _PREPARE)
        no_flags(data, 1, flags)
        self._committed.update(self._streamed.pop(xid, {}))
        return StreamPrepare(prepare_lsn, end_lsn, ms(clock), xid, gid)
