"""Decodes events with selected columns; all other columns are skipped.

With a compiled codec C reads most records, and leaves the others to the reader here, which else reads all of them a
cell at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from schemas.avro import COLUMN_PROPERTY, IDENTITY_PROPERTY, row_record, type_name
from schemas.codec import implementation
from schemas.codec.cells import Read, reader
from schemas.codec.header import HeaderReader, read_string
from schemas.codec.varints import decode_long
from schemas.column_types import Schema
from schemas.errors import Malformed, UsageError
from schemas.events import UNCHANGED, ChangeEvent, Op, Row, Source

if TYPE_CHECKING:
    from schemas.codec._compiled import Reader

Project = Callable[[bytes], ChangeEvent]
"""A whole record → its event; raises Malformed if it is not one."""

Exact = tuple[dict[str, str], dict[str, str]]
"""Column → text of the values of the rows before and after that their cells do not represent."""

Fields = tuple[int, int, tuple[str, ...], dict[str, object] | None, dict[str, object] | None, Exact | None]
"""A record's ordinal, `ts_ms`, names of columns left out, rows before and after, and exact texts."""

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


def _read_texts(data: bytes, position: int) -> tuple[dict[str, str], int]:
    """Return a map of strings."""
    texts: dict[str, str] = {}
    count, position = decode_long(data, position)
    while count:
        if count < 0:
            count = -count
            _, position = decode_long(data, position)
        for _ in range(count):
            name, position = read_string(data, position)
            texts[name], position = read_string(data, position)
        count, position = decode_long(data, position)
    return texts, position


def _read_exact(data: bytes, position: int) -> tuple[Exact | None, int]:
    branch, position = decode_long(data, position)
    if branch == 0:
        return None, position
    if branch != 1:
        raise ValueError("no such branch")
    before, position = _read_texts(data, position)
    after, position = _read_texts(data, position)
    return (before, after), position


class _Open:
    """A ChangeEvent under construction; see `schemas.codec.header._Open` for the reason."""

    __slots__ = tuple(field.name for field in fields(ChangeEvent))

    def __init__(self, op: Op, source: Source, ts_ms: int, before: Row | None, after: Row | None) -> None:
        self.op = op
        self.source = source
        self.ts_ms = ts_ms
        self.before = before
        self.after = after
        self.__class__ = ChangeEvent  # type: ignore[assignment]


_SHAPES: Final = ("boolean", "long", "float", "double", "string", "bytes")
"""The types of a column's value, numbered as in schemas/codec/extension/events.c; an int is encoded like a long."""


def _compiled(names: Sequence[str], wanted: Sequence[bool], types: Sequence[Any]) -> Reader | None:
    """Return the C reader of these columns; None without a compiled codec, or if it does not support a type."""
    if implementation.compiled is None:
        return None
    cells = []
    for name, is_wanted, avro in zip(names, wanted, types, strict=True):
        if not isinstance(avro, list) or len(avro) != 2 or avro[0] != "null":
            return None
        shape = "long" if type_name(avro[1]) == "int" else type_name(avro[1])
        if shape not in _SHAPES:
            return None
        plain = avro[1] in ("boolean", "int", "long", "string")
        make = _Values(reader(avro)).__getitem__ if is_wanted and not plain else None
        cells.append((_SHAPES.index(shape), name if is_wanted else None, make))
    made: Reader = implementation.compiled.Reader(tuple(cells))
    return made


class _Projection:
    """Reads records of one schema with the selected columns."""

    def __init__(self, writer_schema: Schema, columns: Sequence[str], optional: Sequence[str]) -> None:
        row_fields = row_record(writer_schema)["fields"]
        names = [field.get(COLUMN_PROPERTY, field["name"]) for field in row_fields]
        unknown = [name for name in columns if name not in names and name not in optional]
        if unknown:
            raise UsageError(f"the events have no column {', '.join(unknown)}", remedy="check the table's columns")
        types = [field["type"] for field in row_fields]
        self._wanted = [name in columns for name in names]
        self._columns = list(zip(names, self._wanted, map(reader, types), strict=True))
        self._known = frozenset(names)
        identity = writer_schema.get(IDENTITY_PROPERTY)
        self._lacking = [name for name in names if name in columns and identity is not None and name not in identity]
        self._headers = HeaderReader()
        compiled = _compiled(names, self._wanted, types)
        self._compiled = None if compiled is None else compiled.read

    def read(self, value: bytes) -> ChangeEvent:
        """Return the event of a whole record. Raises Malformed if it is not one of this schema."""
        prefix = self._headers.prefix(value)
        try:
            found = None if self._compiled is None else self._compiled(value, prefix.end)
            ordinal, ts_ms, unchanged, before, after, exact = found or self._read_in_python(value, prefix.end)
            if exact is not None:
                _restore(before, exact[0], self._known)
                _restore(after, exact[1], self._known)
            if before is not None:
                _leave_out(before, unchanged if prefix.op is Op.DELETE else self._lacking, self._known)
            if after is not None:
                _leave_out(after, unchanged, self._known)
            event: Any = _Open(prefix.op, prefix.source(ordinal), ts_ms, before, after)
        except _ERRORS as error:
            raise Malformed("a record that does not match its schema") from error
        return event  # type: ignore[no-any-return]

    def _read_in_python(self, value: bytes, position: int) -> Fields:
        ordinal, position = decode_long(value, position)
        ts_ms, position = decode_long(value, position)
        unchanged, position = _read_names(value, position)
        before, position = self._read_row(value, position)
        after, position = self._read_row(value, position)
        exact, position = _read_exact(value, position)
        if position != len(value):
            raise ValueError("bytes after the end")
        return ordinal, ts_ms, unchanged, before, after, exact

    def _read_row(self, value: bytes, position: int) -> tuple[dict[str, object] | None, int]:
        branch, position = decode_long(value, position)
        if branch == 0:
            return None, position
        if branch != 1:
            raise ValueError("no such branch")
        row: dict[str, object] = {}
        for name, wanted, read in self._columns:
            cell, position = read(value, position)
            if wanted:
                row[name] = cell
        return row, position


def _restore(row: dict[str, object] | None, exact: Mapping[str, str], known: Collection[str]) -> None:
    for name, text in exact.items():
        if row is None or name not in known:
            raise ValueError("an unknown column among the exact texts")
        if name in row:
            row[name] = text


def _leave_out(row: dict[str, object], names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name in row:
            row[name] = UNCHANGED
        elif name not in known:
            raise ValueError("an unknown column among those left out")


_NO_EVENT: Final = (
    *(KeyError, TypeError, IndexError, AttributeError, StopIteration, ValueError),
    *(RecursionError, OverflowError),
)
"""The errors for a schema that is not an event's: a registry may return anything."""


def projection(writer_schema: Schema, columns: Sequence[str], optional: Sequence[str] = ()) -> Project:
    """Return the function that reads records of `writer_schema` with only `columns` in their rows.

    Raises UsageError if the events lack a column, unless it is in `optional`: the rows then lack it too. Raises
    Malformed if the schema is not an event's.
    """
    try:
        return _Projection(writer_schema, columns, optional).read
    except _NO_EVENT as error:
        raise Malformed("not the schema of a headrace event") from error
