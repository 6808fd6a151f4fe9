"""Reads operation, source and position from an event's first bytes, without the row.

The layout is fixed by `schemas.avro.value_schema`: `op`, then `source`, whose last field is the ordinal. All bytes
before the ordinal are the same in a transaction, and all before the transaction id the same for a table; a reader
caches both, since equal bytes have equal contents.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

from schemas.codec.varints import decode_long
from schemas.errors import Malformed
from schemas.events import Op, Source
from schemas.positions import Lsn, Position
from schemas.wire import HEADER_BYTES, split_wire

Header = tuple[Op, str, str, Position, int]
"""op, database, gitlab schema, position, and where the rest of the record (`ts_ms` …) starts."""

SNAPSHOT: Final = {"true": True, "false": False}
"""The texts of `source.snapshot`."""

_OP_BYTE: Final = HEADER_BYTES + 1


class _Open:
    """A Source under construction: a frozen dataclass sets its fields four times slower than plain code.

    It has Source's slots, so that Python allows changing the object's class.
    """

    __slots__ = tuple(field.name for field in fields(Source))

    def __init__(self, prefix: Prefix, position: Position) -> None:
        self.database = prefix.database
        self.gitlab_schema = prefix.gitlab_schema
        self.schema = prefix.schema
        self.table = prefix.table
        self.position = position
        self.xid = prefix.xid
        self.ts_ms = prefix.ts_ms
        self.snapshot = prefix.snapshot
        self.__class__ = Source  # type: ignore[assignment]


@dataclass(slots=True)
class Prefix:
    """The contents of a record's bytes up to the ordinal.

    `data` is those bytes, `end` their number, and `table_end` the end of the table's name. `latest` is the source
    returned last: all rows of a snapshot's chunk share it.
    """

    data: bytes
    table_end: int
    op: Op
    database: str
    gitlab_schema: str
    schema: str
    table: str
    xid: int | None
    ts_ms: int
    snapshot: bool
    lsn: Lsn
    end: int
    latest: Source | None = None

    def source(self, ordinal: int) -> Source:
        """Return the source of the event with this ordinal."""
        latest = self.latest
        if latest is not None and latest.position.ordinal == ordinal:
            return latest
        source: Any = _Open(self, Position(self.lsn, ordinal))
        self.latest = source
        return source  # type: ignore[no-any-return]


def read_string(data: bytes, position: int) -> tuple[str, int]:
    """Return the string at `position` and the position after it.

    Raises ValueError or IndexError if there is none.
    """
    length, start = decode_long(data, position)
    end = start + length
    if length < 0 or end > len(data):
        raise IndexError("a string longer than its record")
    return str(data[start:end], "utf-8"), end


class HeaderReader:
    """Reads headers; use one per thread or partition, since it caches the last record's."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: dict[int, Prefix] = {}
        """The last prefix, by the byte of its operation."""

    def prefix(self, value: bytes) -> Prefix:
        """Return the contents of the record before the ordinal.

        Raises Malformed if it is not the start of an event.
        """
        try:
            last = self.last.get(value[_OP_BYTE])
            if last is not None and value.startswith(last.data):
                return last
            prefix = _read_prefix(value, last)
        except (IndexError, ValueError) as error:
            raise Malformed("a record that does not start like an event") from error
        self.last[value[_OP_BYTE]] = prefix
        return prefix

    def __call__(self, value: bytes) -> Header:
        """Return the header of a whole record.

        Raises Malformed if the header is not an event's.
        """
        prefix = self.prefix(value)
        position = len(prefix.data)
        try:
            ordinal, rest = decode_long(value, position)
        except (IndexError, ValueError) as error:
            raise Malformed("a record that ends within its position") from error
        return prefix.op, prefix.database, prefix.gitlab_schema, Position(prefix.lsn, ordinal), rest


def _read_prefix(value: bytes, last: Prefix | None) -> Prefix:
    if last is not None and value.startswith(last.data[: last.table_end]):
        op, database, gitlab_schema = last.op, last.database, last.gitlab_schema
        schema, table, table_end = last.schema, last.table, last.table_end
    else:
        _, position = split_wire(value)
        letter, position = read_string(value, position)
        op = Op(letter)
        _version, position = read_string(value, position)
        _connector, position = read_string(value, position)
        database, position = read_string(value, position)
        _db, position = read_string(value, position)
        gitlab_schema, position = read_string(value, position)
        schema, position = read_string(value, position)
        table, table_end = read_string(value, position)
    xid = None
    branch, position = decode_long(value, table_end)
    if branch:
        xid, position = decode_long(value, position)
    ts_ms, position = decode_long(value, position)
    snapshot, position = read_string(value, position)
    if branch not in (0, 1) or snapshot not in SNAPSHOT:
        raise ValueError("no such branch or boolean")
    lsn, position = decode_long(value, position)
    return Prefix(
        value[:position],
        table_end,
        op,
        database,
        gitlab_schema,
        schema,
        table,
        xid,
        ts_ms,
        SNAPSHOT[snapshot],
        Lsn(lsn),
        position,
    )


header: Final = HeaderReader()
"""A reader for callers with one stream of records."""
