r"""Encodes lines of COPY's text format as Avro rows and keys, looking up repeated neighbouring columns together.

Neighbouring columns whose values repeat together (states, counters, nulls) form one group, whose text with tabs is
looked up as a whole. A sample of each chunk determines the groups; the encoded bytes are the same for any grouping.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from schemas.column_types import ColumnType
from schemas.copy_text import NULL_FIELD, Column, column_encoder, field_encoder
from schemas.values import Encode, Memo
from schemas.varints import encode_long

_BLOCK: Final = 1024
"""Lines encoded at a time: few enough that a block's cells stay in the CPU cache."""

_SAMPLE: Final = 128
_GROUPED: Final = _SAMPLE // 8
"""The most distinct combined texts of neighbouring columns in a sample for them to form a group."""

Block = tuple[list[Sequence[bytes]], list[Sequence[bytes]]]
"""Encoded cells of a block's rows, and the key columns of the same rows: columns of bytes, in order."""


class _Plan:
    """Groups of columns, and the regular expression that splits a line into them."""

    def __init__(self, groups: Sequence[tuple[int, int]], encoders: Sequence[Encode]) -> None:
        self.groups = tuple(groups)
        field = rb"[^\t]*+"
        cells = (b"(" + rb"\t".join([field] * (stop - start)) + rb")\t" for start, stop in groups)
        self.findall: Callable[[bytes], list[tuple[bytes, ...]]] = re.compile(
            b"^" + b"".join(cells) + rb"()\n", re.MULTILINE
        ).findall
        self.memos = [Memo(_group_encoder(encoders[start:stop]), {}).__getitem__ for start, stop in groups]


def _group_encoder(encoders: Sequence[Encode]) -> Encode:
    def encode(text: bytes) -> bytes:
        fields = text.split(b"\t")
        return b"".join([encode(field) for encode, field in zip(encoders, fields, strict=True)])

    return encode


class LineEncoder:
    """Encodes lines of columns of `types`; `key` has the indexes of the key columns."""

    def __init__(self, types: Sequence[ColumnType], key: Sequence[int]) -> None:
        self._key = tuple(key)
        self._partial = [column.partial for column in types]
        self._columns: list[Column] = [column_encoder(column) for column in types]
        self._fields = [field_encoder(column) for column in types]
        self._plans: dict[tuple[tuple[int, int], ...], _Plan] = {}
        self._plan: _Plan | None = None

    def blocks(self, data: bytes) -> Iterator[Block]:
        """Yield the encoded blocks of whole lines, in order.

        Raises ValueError for lines of another number of columns, a line that does not end and a null in the
        key, and what a value's encoder raises.
        """
        if not data:
            return
        lines = data.split(b"\n")
        if lines.pop():
            raise ValueError("an incomplete line")
        plan = self._plan
        if plan is None or len(lines) >= _BLOCK:
            plan = self._plan = self._planned(lines)
        # Equal counts mean that every backslash is part of a `\N`: no field needs unescaping.
        clean = data.count(b"\\") == data.count(NULL_FIELD)
        for start in range(0, len(lines), _BLOCK):
            yield self._block(plan, lines[start : start + _BLOCK], clean)

    def _planned(self, lines: Sequence[bytes]) -> _Plan:
        rows = [line.split(b"\t") for line in lines[:: len(lines) // _SAMPLE + 1]]
        width = len(self._columns)
        if any(len(row) != width for row in rows):
            raise ValueError("a wrong number of columns")
        alone: Collection[int] = self._key
        groups: list[tuple[int, int]] = []
        start = 0
        while start < width:
            stop = start + 1
            if start not in alone:
                texts = [row[start] for row in rows]
                while len(set(texts)) <= _GROUPED and stop < width and stop not in alone:
                    longer = [text + b"\t" + row[stop] for text, row in zip(texts, rows, strict=True)]
                    if len(set(longer)) > _GROUPED:
                        break
                    texts = longer
                    stop += 1
            groups.append((start, stop))
            start = stop
        shape = tuple(groups)
        if shape not in self._plans:
            if len(self._plans) > 64:
                self._plans.clear()
            self._plans[shape] = _Plan(groups, self._fields)
        return self._plans[shape]

    def _block(self, plan: _Plan, lines: list[bytes], clean: bool) -> Block:
        # A tab before each line's end terminates every field, which a regular expression scans fastest.
        rows = plan.findall(b"\t\n".join(lines) + b"\t\n")
        if len(rows) != len(lines):
            raise ValueError("a wrong number of columns")
        *texts, _ = zip(*rows, strict=True)
        cells: list[Sequence[bytes]] = []
        keys: dict[int, Sequence[bytes]] = {}
        for (start, stop), memo, column in zip(plan.groups, plan.memos, texts, strict=True):
            if stop > start + 1:
                cells.append(list(map(memo, column)))
                continue
            encoded = self._columns[start](column, clean)
            cells.append(encoded)
            if start in self._key:
                if NULL_FIELD in column:
                    raise ValueError("null in the key")
                keys[start] = (
                    # A partial type is text in the key, whichever branch the row uses.
                    [_text(field) for field in column] if self._partial[start] else [cell[1:] for cell in encoded]
                )
        return cells, [keys[index] for index in self._key]

    def rejected(self, data: bytes) -> tuple[int, Exception] | None:
        """Return the first column whose encoder rejects a field of `data`, and its error; None if none does."""
        for line in data.split(b"\n")[:-1]:
            for index, (encode, field) in enumerate(zip(self._fields, line.split(b"\t"), strict=False)):
                try:
                    encode(field)
                except (ValueError, OverflowError, KeyError) as error:
                    return index, error
        return None


def _text(field: bytes) -> bytes:
    return encode_long(len(field)) + field
