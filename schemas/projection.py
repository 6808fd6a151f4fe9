"""Decodes events with selected columns; all other columns are skipped.

One regular expression skips a record's cells in C and captures the selected ones. It covers most records; the others
(with texts of 64 bytes or more) are read a cell at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from schemas import codec
from schemas.avro import COLUMN_PROPERTY, IDENTITY_PROPERTY, row_record
from schemas.cells import SHORT, VARINT, Read, pattern, reader, type_name
from schemas.column_types import Schema
from schemas.errors import Malformed, UsageError
from schemas.events import UNCHANGED, ChangeEvent, Op, Row, Source
from schemas.header import HeaderReader, read_string
from schemas.varints import decode_long

if TYPE_CHECKING:
    from schemas._codec import Reader

Project = Callable[[bytes], ChangeEvent]
"""A whole record → its event; raises Malformed if it is not one."""

_MEMO_LIMIT: Final = 16_384
_ERRORS: Final = (IndexError, ValueError, OverflowError, ArithmeticError)


class _Values(dict[bytes, Any]):
    """Caches values by their cells; emptied when it becomes large."""

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
            # A writer may add a block's size in bytes, which the names' lengths make redundant.
            count = -count
            _, position = decode_long(data, position)
        for _ in range(count):
            name, position = read_string(data, position)
            names.append(name)
        count, position = decode_long(data, position)
    return tuple(names), position


class _Open:
    """A ChangeEvent under construction; see `schemas.header._Open` for the reason."""

    __slots__ = tuple(field.name for field in fields(ChangeEvent))

    def __init__(self, op: Op, source: Source, ts_ms: int, before: Row | None, after: Row | None) -> None:
        self.op = op
        self.source = source
        self.ts_ms = ts_ms
        self.before = before
        self.after = after
        self.__class__ = ChangeEvent  # type: ignore[assignment]


def _short_long(varint: bytes) -> int:
    """Return the int or long of a whole varint, in one step if it has up to four bytes."""
    if len(varint) > 4:
        return decode_long(varint, 0)[0]
    raw = int.from_bytes(varint, "little")
    bits = raw & 0x7F | (raw & 0x7F00) >> 1 | (raw & 0x7F0000) >> 2 | (raw & 0x7F000000) >> 3
    return bits >> 1 ^ -(bits & 1)


def _long_cell(cell: bytes) -> int | None:
    return _short_long(cell[1:]) if len(cell) > 1 else None


def _text_cell(cell: bytes) -> str | None:
    # The expression matches texts of up to 63 bytes: one branch byte, one length byte.
    return str(cell[2:], "utf-8") if len(cell) > 1 else None


def _cell_reader(avro: Any) -> Callable[[bytes], Any]:
    """Return the reader of a cell that the expression matched."""
    if avro in (["null", "int"], ["null", "long"]):
        return _long_cell
    if avro == ["null", "string"]:
        return _text_cell
    return _Values(reader(avro)).__getitem__


_START: Final = """\
        prefix = last.get(value[6])
        if prefix is None or not value.startswith(prefix.data):
            prefix = prefix_of(value)
"""

_COMPILED: Final = """\
        found = read(value, prefix.end)
        if found is not None:
            ordinal, ts_ms, before, after = found
            if before is not None and prefix.op is not DELETE:
                for name in lacking:
                    before[name] = UNCHANGED
            return Open(prefix.op, prefix.source(ordinal), ts_ms, before, after)
"""
"""The first step with a compiled codec, which returns None for records that it leaves to Python."""

_PROJECT: Final = """\
def project(value):
    try:
{start}        found = match(value, prefix.end)
        if found is None:
            return slow(value)
        ordinal, ts_ms, names, old, {before}new, {after}= found.groups()
        source = prefix.source(LONG(ordinal))
        if old is None and names == b"\\0":
            return Open(prefix.op, source, TS_MS(ts_ms), None, {{{row}}} if new else None)
        unchanged = () if names == b"\\0" else names_of(names)
        before = {{{old_row}}} if old else None
        after = {{{row}}} if new else None
        return event(prefix.op, source, TS_MS(ts_ms), unchanged=unchanged, before=before, after=after)
    except ERRORS as error:
        raise Malformed("a record that does not match its schema") from error
"""


_SHAPES: Final = ("boolean", "long", "float", "double", "string", "bytes")
"""The types of a column's value, numbered as in schemas/_codec_events.h; an int is encoded like a long."""


def _compiled(names: Sequence[str], wanted: Sequence[bool], types: Sequence[Any]) -> Reader | None:
    """Return the C reader of these columns; None without a compiled codec, or if it does not support a type."""
    if codec.compiled is None:
        return None
    cells = []
    for name, is_wanted, avro in zip(names, wanted, types, strict=True):
        if not isinstance(avro, list) or avro[0] != "null" or avro[2:] not in ([], ["string"]):
            return None
        shape = "long" if type_name(avro[1]) == "int" else type_name(avro[1])
        if shape not in _SHAPES:
            return None
        plain = len(avro) == 2 and avro[1] in ("boolean", "int", "long", "string")
        make = _Values(reader(avro)).__getitem__ if is_wanted and not plain else None
        cells.append((_SHAPES.index(shape), len(avro) == 3, name if is_wanted else None, make))
    made: Reader = codec.compiled.Reader(tuple(cells))
    return made


class _Projection:
    """The state of a projection that is the same for all records."""

    def __init__(self, writer_schema: Schema, columns: Sequence[str], optional: Sequence[str]) -> None:
        row_fields = row_record(writer_schema)["fields"]
        names = [field.get(COLUMN_PROPERTY, field["name"]) for field in row_fields]
        unknown = [name for name in columns if name not in names and name not in optional]
        if unknown:
            raise UsageError(f"the events have no column {', '.join(unknown)}", remedy="check the table's columns")
        self.names = [name for name in names if name in columns]
        self.readers = [reader(field["type"]) for field in row_fields]
        self.wanted = [name in columns for name in names]
        self.all_names = names
        self.known = frozenset(names)
        identity = writer_schema.get(IDENTITY_PROPERTY)
        self.lacking = [name for name in self.names if identity is not None and name not in identity]
        self.compiled = _compiled(names, self.wanted, [field["type"] for field in row_fields])
        self.headers = HeaderReader()
        self.match = re.compile(self._pattern([field["type"] for field in row_fields]), re.DOTALL).match
        self.values = [
            _cell_reader(field["type"]) for field, wanted in zip(row_fields, self.wanted, strict=True) if wanted
        ]

    def _pattern(self, types: list[Any]) -> bytes:
        cells = [
            b"(" + pattern(avro) + b")" if wanted else pattern(avro)
            for avro, wanted in zip(types, self.wanted, strict=True)
        ]
        unchanged = rb"(\x00|[\x02\x04-\x7e](?:(?!\x00)" + SHORT + rb")*+\x00)"
        row = b"".join(cells)
        return b"".join(
            (
                b"(",
                VARINT,
                b")(",
                VARINT,
                b")",
                unchanged,
                rb"(?:\x00|(\x02)",
                row,
                rb")(?:\x00|(\x02)",
                row,
                rb")\Z",  # a longer record was written with another schema
            )
        )

    def generate(self) -> Project:
        """Return the generated function that reads a record with these columns."""
        indexes = range(len(self.names))
        row = ", ".join(f"N{index}: V{index}(a{index})" for index in indexes)
        source = _PROJECT.format(
            before="".join(f"b{index}, " for index in indexes),
            after="".join(f"a{index}, " for index in indexes),
            start=_START if self.compiled is None else _START + _COMPILED,
            row=row,
            old_row=row.replace("(a", "(b"),
        )
        scope: dict[str, Any] = {
            "prefix_of": self.headers.prefix,
            "last": self.headers.last,
            "match": self.match,
            "slow": self._slow,
            "event": self._event,
            "LONG": _short_long,
            "TS_MS": _Values(decode_long).__getitem__,
            "names_of": lambda names: _read_names(names, 0)[0],
            "Open": _Open,
            "Malformed": Malformed,
            "ERRORS": _ERRORS,
            "read": None if self.compiled is None else self.compiled.read,
            "lacking": self.lacking,
            "DELETE": Op.DELETE,
            "UNCHANGED": UNCHANGED,
        }
        for index, (name, value) in enumerate(zip(self.names, self.values, strict=True)):
            scope[f"N{index}"], scope[f"V{index}"] = name, value
        # The source consists of column numbers and constants of this module: no name or value gets into it.
        exec(compile(source, "<projection>", "exec"), scope)  # noqa: S102
        project: Project = scope["project"]
        return project

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
            self._leave_out(before, unchanged if op is Op.DELETE else self.lacking)
        if after is not None:
            self._leave_out(after, unchanged)
        return ChangeEvent(op, source, ts_ms, before, after)

    def _leave_out(self, row: dict[str, object], names: Sequence[str]) -> None:
        for name in names:
            if name in row:
                row[name] = UNCHANGED
            elif name not in self.known:
                raise ValueError("an unknown column among those left out")


_NO_EVENT: Final = (
    *(KeyError, TypeError, IndexError, AttributeError, StopIteration, ValueError),
    *(RecursionError, OverflowError, re.error),
)
"""The errors for a schema that is not an event's: a registry may return anything."""


def projection(writer_schema: Schema, columns: Sequence[str], optional: Sequence[str] = ()) -> Project:
    """Return the function that reads records of `writer_schema` with only `columns` in their rows.

    Raises UsageError if the events lack a column, unless it is in `optional`: the rows then lack it too. Raises
    Malformed if the schema is not an event's.
    """
    try:
        made = _Projection(writer_schema, columns, optional)
    except _NO_EVENT as error:
        raise Malformed("not the schema of a headrace event") from error
    return made.generate()
