r"""Encodes a table's rows in Python, one field after the other.

The reference for the compiled codec, which passes on to it what it does not handle, and its replacement where headrace
was installed without a C compiler.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from schemas.avro import lacking_columns, type_of
from schemas.codec.copy_text import NULL_FIELD, unescape
from schemas.codec.values import NULL, VALUE, encode_text, value_encoder
from schemas.codec.varints import encode_long
from schemas.errors import Malformed
from schemas.events import UNCHANGED, Relation, Unchanged

Tuple = Sequence[bytes | Unchanged | None]
"""A row of the stream: one text, None or UNCHANGED per column of the relation."""

Record = tuple[bytes, bytes]
"""A Kafka record's key and value."""

Texts = list[tuple[str, bytes]]
"""Column and text, in the order of the columns."""

_REJECTIONS: Final = (ValueError, OverflowError)


def encode_texts(texts: Sequence[tuple[str, bytes]]) -> bytes:
    """Return an Avro map of strings, as one block."""
    entries = b"".join(encode_text(name.encode()) + encode_text(text) for name, text in texts)
    return encode_long(len(texts)) + entries + NULL if texts else NULL


def encode_names(names: Sequence[str]) -> bytes:
    """Return an Avro array of strings, as one block."""
    return encode_long(len(names)) + b"".join(encode_text(name.encode()) for name in names) + NULL if names else NULL


def _exact(before: Texts, after: Texts) -> bytes:
    """Return the field `exact`, with which an event ends."""
    return VALUE + encode_texts(before) + encode_texts(after) if before or after else NULL


class RowEncoder:
    """Encodes the rows of one table; see Encoder, whose methods these are.

    `key` names the columns of the message key, and `header` is the bytes before each key.
    """

    def __init__(self, relation: Relation, key: Sequence[str], header: bytes) -> None:
        self._relation = relation
        self._header = header
        self._names = [column.name for column in relation.columns]
        self._types = [type_of(column) for column in relation.columns]
        self._encoders = [value_encoder(column) for column in self._types]
        self._key_names = tuple(key)
        self._key = [self._names.index(name) for name in key]
        lacking = lacking_columns(relation)
        self._lacking = encode_names(lacking)
        self._every = range(len(self._names))
        self._old = {index for index, name in enumerate(self._names) if name not in lacking}
        """The columns that an old row contains."""
        # A delete's row also has its key, as far as the key is of the columns' own types.
        self._deleted = self._old | {index for index in self._key if not self._types[index].partial}

    def key(self, values: Tuple) -> bytes:
        """Return the message key of a row."""
        self._check_width(values)
        return self._key_of(values)

    def change(self, prefix: bytes, ordinal: int, ts_ms: int, new: Tuple) -> Record:
        """Return the record of a create, or of an update without an old row."""
        after, exact = self._row(new, self._every)
        key = self._key_of(new)
        head = prefix + self._numbers(ordinal, ts_ms) + self._unchanged(new)
        return key, head + NULL + after + _exact([], exact)

    def update(self, prefix: bytes, ordinal: int, ts_ms: int, old: Tuple, new: Tuple) -> Record:
        """Return the record of an update with its old row."""
        (before, exact_before), (after, exact_after) = self._row(old, self._old), self._row(new, self._every)
        key = self._key_of(new)
        head = prefix + self._numbers(ordinal, ts_ms) + self._unchanged(new)
        return key, head + before + after + _exact(exact_before, exact_after)

    def delete(self, prefix: bytes, ordinal: int, ts_ms: int, old: Tuple) -> Record:
        """Return the record of a delete."""
        before, exact = self._row(old, self._deleted)
        key = self._key_of(old)
        return key, prefix + self._numbers(ordinal, ts_ms) + self._lacking + before + NULL + _exact(exact, [])

    def copy(self, data: bytes, value_prefix: bytes) -> tuple[list[bytes], list[bytes]]:
        """Return the keys and the values of whole lines of COPY's text format, in order.

        `value_prefix` ends with the branch of the new row.
        """
        keys: list[bytes] = []
        values: list[bytes] = []
        *lines, rest = data.split(b"\n")
        for line in lines:
            fields = line.split(b"\t")
            if len(fields) != len(self._names):
                raise self._malformed("a wrong number of columns")
            row = [self._text(index, field) for index, field in enumerate(fields)]
            cells, exact = self._cells(row, self._every)
            values.append(value_prefix + cells + _exact([], exact))
            if any(row[index] is None for index in self._key):
                raise self._malformed("null in the key")
            keys.append(self._key_of(row))
        if rest:
            raise self._malformed("an incomplete line")
        return keys, values

    def _text(self, index: int, field: bytes) -> bytes | None:
        try:
            return None if field == NULL_FIELD else unescape(field)
        except ValueError as error:
            raise self._rejected(index, error) from None

    def _key_of(self, values: Tuple) -> bytes:
        return self._header + b"".join(self._key_part(index, values[index]) for index in self._key)

    def _key_part(self, index: int, value: object) -> bytes:
        if self._types[index].partial and isinstance(value, bytes):
            return encode_text(value)
        cell = self._cell(index, value)
        if cell == NULL:
            raise self._malformed("a row without a value in its key " + ", ".join(self._key_names))
        return cell[1:]

    def _row(self, values: Tuple, present: Collection[int]) -> tuple[bytes, Texts]:
        self._check_width(values)
        cells, exact = self._cells(values, present)
        return VALUE + cells, exact

    def _cells(self, values: Tuple, present: Collection[int]) -> tuple[bytes, Texts]:
        """Return the cells, and column and text of the values that they cannot represent."""
        cells = [self._cell(index, value) if index in present else NULL for index, value in enumerate(values)]
        exact = [
            (name, value)
            for index, (name, value, cell) in enumerate(zip(self._names, values, cells, strict=True))
            if cell == NULL and index in present and isinstance(value, bytes)
        ]
        return b"".join(cells), exact

    def _cell(self, index: int, value: object) -> bytes:
        if value is None or (value is UNCHANGED and self._types[index].toastable):
            return NULL
        if not isinstance(value, bytes):
            raise self._rejected(index, ValueError("neither text nor null"))
        try:
            return self._encoders[index](value)
        except _REJECTIONS as error:
            raise self._rejected(index, error) from None

    def _numbers(self, ordinal: int, ts_ms: int) -> bytes:
        try:
            return encode_long(ordinal) + encode_long(ts_ms)
        except OverflowError:
            raise self._malformed(
                "a row rejected by its encoder, although each value is valid for its column"
            ) from None

    def _unchanged(self, values: Tuple) -> bytes:
        return encode_names([name for name, value in zip(self._names, values, strict=True) if value is UNCHANGED])

    def _check_width(self, values: Tuple) -> None:
        if len(values) != len(self._names):
            raise self._malformed(f"{len(values)} columns where the relation has {len(self._names)}")

    def _rejected(self, index: int, error: Exception) -> Malformed:
        return self._malformed(f"a value of column {self._names[index]} is {error}")

    def _malformed(self, problem: str) -> Malformed:
        return Malformed(f"{self._relation.qualified_name}: {problem}")
