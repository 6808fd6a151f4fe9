"""Events with some of their columns: what a migration asks for is built, all else is stepped over.

One regular expression steps over a record's cells in C and captures the cells asked for. It covers what most
records are made of; the others (texts of 64 bytes and more) are read a cell at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from schemas.avro import COLUMN_PROPERTY, IDENTITY_PROPERTY, row_record
from schemas.cells import SHORT, VARINT, Read, pattern, reader
from schemas.column_types import Schema
from schemas.errors import Malformed, UsageError
from schemas.events import UNCHANGED, ChangeEvent, Op, Source
from schemas.header import HeaderReader, read_string
from schemas.varints import decode_long

Project = Callable[[bytes], ChangeEvent]
"""A whole record → its event; Malformed when it is none."""

_MEMO_LIMIT: Final = 16_384
_ERRORS: Final = (IndexError, ValueError, OverflowError, ArithmeticError)


class _Values(dict[bytes, Any]):
    """Values by their cells, so that a repeated one is one lookup; emptied when it has grown large."""

    __slots__ = ("_read",)

    def __init__(self, read: Read) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, cell: bytes) -> Any:
        value, end = self._read(cell, 0)
        if end != len(cell):
            raise ValueError("a cell with bytes after its end")
        if len(self) >= _MEMO_LIMIT:
            self.clear()
        self[cell] = value
        return value


def _read_names(data: bytes, position: int) -> tuple[tuple[str, ...], int]:
    """Return an array of strings."""
    names: list[str] = []
    count, position = decode_long(data, position)
    while count:
        if count < 0:
            # A writer may give a block's size in bytes; the names' own lengths say the same.
            count = -count
            _, position = decode_long(data, position)
        for _ in range(count):
            name, position = read_string(data, position)
            names.append(name)
        count, position = decode_long(data, position)
    return tuple(names), position


class _Projection:
    """The parts of a projection that do not change from record to record."""

    def __init__(self, writer_schema: Schema, columns: Sequence[str]) -> None:
        fields = row_record(writer_schema)["fields"]
        names = [field.get(COLUMN_PROPERTY, field["name"]) for field in fields]
        unknown = [name for name in columns if name not in names]
        if unknown:
            raise UsageError(f"no column {', '.join(unknown)} in the events", remedy="see the table's columns")
        self.names = [name for name in names if name in columns]
        self.readers = [reader(field["type"]) for field in fields]
        self.wanted = [name in columns for name in names]
        self.all_names = names
        identity = writer_schema.get(IDENTITY_PROPERTY)
        self.lacking = [name for name in self.names if identity is not None and name not in identity]
        self.headers = HeaderReader()
        self.match = re.compile(self._pattern([field["type"] for field in fields]), re.DOTALL).match
        self.cells = [_Values(read) for read, wanted in zip(self.readers, self.wanted, strict=True) if wanted]

    def _pattern(self, types: list[Any]) -> bytes:
        cells = [
            b"(" + pattern(avro) + b")" if wanted else pattern(avro)
            for avro, wanted in zip(types, self.wanted, strict=True)
        ]
        last = max((index for index, wanted in enumerate(self.wanted) if wanted), default=-1)
        unchanged = rb"(\x00|[\x02\x04-\x7e](?:(?!\x00)" + SHORT + rb")*+\x00)"
        before, after = b"".join(cells), b"".join(cells[: last + 1])
        return b"".join(
            (
                b"(",
                VARINT,
                b")(",
                VARINT,
                b")",
                unchanged,
                rb"(?:\x00|(\x02)",
                before,
                rb")(?:\x00|(\x02)",
                after,
                b")",
            )
        )

    def project(self, value: bytes) -> ChangeEvent:
        """Return the event in a whole record; Malformed when it is none."""
        prefix = self.headers.prefix(value)
        try:
            found = self.match(value, len(prefix.data))
            if found is None:
                return self._slow(value)
            ordinal, ts_ms, names, old, *cells = found.groups()
            width = len(self.names)
            unchanged = () if names == b"\x00" else _read_names(names, 0)[0]
            before = self._row(cells[:width]) if old else None
            after = self._row(cells[width + 1 :]) if cells[width] else None
        except _ERRORS as error:
            raise Malformed("a record that its schema does not describe") from error
        source = prefix.source(decode_long(ordinal, 0)[0])
        return self._event(prefix.op, source, decode_long(ts_ms, 0)[0], unchanged=unchanged, before=before, after=after)

    def _row(self, cells: Sequence[bytes]) -> dict[str, object]:
        return {name: values[cell] for name, values, cell in zip(self.names, self.cells, cells, strict=True)}

    def _slow(self, value: bytes) -> ChangeEvent:
        prefix = self.headers.prefix(value)
        ordinal, position = decode_long(value, len(prefix.data))
        ts_ms, position = decode_long(value, position)
        unchanged, position = _read_names(value, position)
        before, position = self._read_row(value, position)
        after, position = self._read_row(value, position)
        if position != len(value):
            raise ValueError("bytes after the end")
        return self._event(prefix.op, prefix.source(ordinal), ts_ms, unchanged=unchanged, before=before, after=after)

    def _read_row(self, value: bytes, position: int) -> tuple[dict[str, object] | None, int]:
        branch, position = decode_long(value, position)
        if branch == 0:
            return None, position
        if branch != 1:
            raise ValueError("no such branch")
        row: dict[str, object] = {}
        for name, wanted, read in zip(self.all_names, self.wanted, self.readers, strict=True):
            cell, position = read(value, position)
            if wanted:
                row[name] = cell
        return row, position

    def _event(
        self,
        op: Op,
        source: Source,
        ts_ms: int,
        *,
        unchanged: Sequence[str],
        before: dict[str, object] | None,
        after: dict[str, object] | None,
    ) -> ChangeEvent:
        if before is not None:
            for name in unchanged if op is Op.DELETE else self.lacking:
                if name in before:
                    before[name] = UNCHANGED
        if after is not None:
            for name in unchanged:
                if name in after:
                    after[name] = UNCHANGED
        return ChangeEvent(op, source, ts_ms, before, after)


def projection(writer_schema: Schema, columns: Sequence[str]) -> Project:
    """Return the function that reads records of `writer_schema` with only `columns` in their rows.

    Raises UsageError when the events have no such column, Malformed when the schema is no event's.
    """
    try:
        return _Projection(writer_schema, columns).project
    except (KeyError, TypeError, IndexError, AttributeError, StopIteration) as error:
        raise Malformed("a schema that is not of a headrace event") from error
