"""Encodes a table's changes as Kafka records: PostgreSQL's text in, Avro bytes out, without a dict in between.

For each relation the encoder generates and compiles a few functions with one expression per column, the fastest way in
Python. fastavro is the reference, byte for byte (tests/schemas/test_encoder.py). If headrace was installed with a C
compiler, `schemas._codec` handles most rows and leaves the others to these functions (schemas/codec.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat

from schemas import codec
from schemas.avro import key_schema, lacking_columns, type_of, value_schema
from schemas.column_types import Schema
from schemas.copy_lines import LineEncoder
from schemas.errors import Malformed
from schemas.events import UNCHANGED, Op, Relation, Unchanged
from schemas.positions import Lsn
from schemas.row_code import REJECTIONS, compile_functions
from schemas.values import NULL, VALUE, value_encoder
from schemas.varints import encode_long
from schemas.wire import wire_header

Tuple = Sequence[bytes | Unchanged | None]
"""A row of the stream: one text, None or UNCHANGED per column of the relation."""

Record = tuple[bytes, bytes]
"""A Kafka record's key and value."""


def _string(text: str) -> bytes:
    raw = text.encode()
    return encode_long(len(raw)) + raw


def _names(names: Sequence[str]) -> bytes:
    """Return an Avro array of strings, as one block."""
    return encode_long(len(names)) + b"".join(map(_string, names)) + NULL if names else NULL


class Encoder:
    """Encodes one table's rows; recreated when the relation or a schema id changes.

    `key` names the columns of the message key, in order. The ids are the registry's for `value_schema` and
    `key_schema`. Every method that takes rows raises Malformed, naming the table and column, for a value that
    is not of its column's type, a null in the key, or a wrong number of columns.
    """

    def __init__(
        self,
        relation: Relation,
        gitlab_schema: str,
        key: Sequence[str],
        *,
        database: str,
        value_schema_id: int,
        key_schema_id: int,
        compiled: bool = True,
    ) -> None:
        """With `compiled` false, rows are encoded in Python even if there is a compiled codec."""
        self.relation = relation
        self.value_schema: Schema = value_schema(relation, gitlab_schema)
        self.key_schema: Schema = key_schema(relation, gitlab_schema, key)
        self.truncate_key: bytes = wire_header(key_schema_id)
        self._key_header = self.truncate_key
        names = [column.name for column in relation.columns]
        self._names = names
        self._types = [type_of(column) for column in relation.columns]
        self._key_names = tuple(key)
        self._key_columns = [names.index(name) for name in key]
        self._lines = LineEncoder(self._types, self._key_columns)
        where = b"".join(map(_string, (database, gitlab_schema, relation.schema, relation.table)))
        self._op_prefixes = {op: wire_header(value_schema_id) + _string(op) + where for op in Op}
        lacking = lacking_columns(relation)
        functions = compile_functions(
            self._types,
            self._key_columns,
            [names.index(name) for name in lacking],
            {
                "HEADER": self._key_header,
                "LACKING": _names(lacking),
                "unchanged": self._unchanged,
                "blame": self._blame,
            },
        )
        self.key = functions["key"]
        self.change = functions["change"]
        self.update = functions["update"]
        self.delete = functions["delete"]
        self._copy = self._copy_in_python
        plan = codec.plan(
            self._types,
            self._key_columns,
            [names.index(name) for name in lacking],
            header=self._key_header,
            lacking_names=_names(lacking),
            names=[_string(name) for name in names],
            python=codec.Fallbacks(self._copy, self.key, self.change, self.update, self.delete),
        )
        if compiled and plan is not None:
            self._copy, self.key = plan.encode_copy, plan.key
            self.change, self.update, self.delete = plan.change, plan.update, plan.delete

    def event_prefix(self, op: Op, *, lsn: Lsn, xid: int | None, ts_ms: int, snapshot: bool = False) -> bytes:
        """Return the bytes that a transaction's events of one `op` share, from the wire header to `source.lsn`.

        `lsn` is the commit's, `ts_ms` its time in milliseconds since 1970.
        """
        transaction = NULL if xid is None else VALUE + encode_long(xid)
        return b"".join(
            (
                self._op_prefixes[op],
                transaction,
                encode_long(ts_ms),
                b"\x01" if snapshot else b"\x00",
                encode_long(lsn),
            )
        )

    def copy_prefix(self, *, lsn: Lsn, ordinal: int, ts_ms: int) -> bytes:
        """Return the bytes before each row of a snapshot: `op` r, at the stream's current position."""
        prefix = self.event_prefix(Op.READ, lsn=lsn, xid=None, ts_ms=ts_ms, snapshot=True)
        return prefix + encode_long(ordinal) + encode_long(ts_ms) + b"\x00\x00\x02"

    key: Callable[[Tuple], bytes]
    """key(values) → the message key of a row; an old tuple with only the key's columns suffices."""

    change: Callable[[bytes, int, int, Tuple], Record]
    """change(prefix, ordinal, ts_ms, new) → the record of a create, or of an update without an old row.

    `prefix` is `event_prefix`'s, and `ts_ms` the time of capture in milliseconds since 1970.
    """

    update: Callable[[bytes, int, int, Tuple, Tuple], Record]
    """update(prefix, ordinal, ts_ms, old, new) → the record of an update with its old row.

    The key is the new row's: the caller turns an update of the key into a `delete` and a `change`. Only the columns of
    the relation's replica identity are written of the old row.
    """

    delete: Callable[[bytes, int, int, Tuple], Record]
    """delete(prefix, ordinal, ts_ms, old) → the record of a delete; its tombstone is the key and None."""

    def truncate(self, prefix: bytes, ordinal: int, ts_ms: int) -> Record:
        """Return the record of a truncate: no rows, and a key without columns, since a compacted topic requires a
        key."""
        value = b"".join((prefix, encode_long(ordinal), encode_long(ts_ms), b"\x00\x00\x00"))
        return self.truncate_key, value

    def encode_copy_chunk(self, data: bytes, value_prefix: bytes) -> tuple[list[bytes], list[bytes]]:
        """Return the keys and the values of whole lines of COPY's text format, in order.

        `value_prefix` is `copy_prefix`'s. The lines have the relation's columns, and all are complete.
        """
        return self._copy(data, value_prefix)

    _copy: Callable[[bytes, bytes], tuple[list[bytes], list[bytes]]]

    def _copy_in_python(self, data: bytes, value_prefix: bytes) -> tuple[list[bytes], list[bytes]]:
        keys: list[bytes] = []
        values: list[bytes] = []
        header = self._key_header
        try:
            for cells, key in self._lines.blocks(data):
                values += map(b"".join, zip(repeat(value_prefix), *cells, strict=False))
                if len(key) == 1:
                    keys += [header + part for part in key[0]]
                else:
                    keys += map(b"".join, zip(repeat(header), *key, strict=False))
        except REJECTIONS as error:
            culprit = self._lines.rejected(data)
            raise self._rejected(*culprit) if culprit else self._malformed(str(error)) from None
        return keys, values

    def _malformed(self, problem: str) -> Malformed:
        return Malformed(f"{self.relation.qualified_name}: {problem}")

    def _rejected(self, index: int, error: Exception) -> Malformed:
        return self._malformed(f"a value of column {self._names[index]} is {error}")

    def _blame(self, *rows: Tuple) -> Malformed:
        """Return the error with the column at which the generated code failed."""
        for values in rows:
            if len(values) != len(self._names):
                return self._malformed(f"{len(values)} columns where the relation has {len(self._names)}")
            for index, value in enumerate(values):
                try:
                    self._judge(index, value)
                except REJECTIONS as error:
                    return self._rejected(index, error)
            if any(not isinstance(values[index], bytes) for index in self._key_columns):
                return self._malformed("a row without a value in its key " + ", ".join(self._key_names))
        return self._malformed("a row rejected by its encoder, although each value is valid for its column")

    def _judge(self, index: int, value: object) -> None:
        """Raise one of REJECTIONS if `value` is invalid for the column; ignores the key."""
        column = self._types[index]
        if isinstance(value, bytes):
            value_encoder(column)(value)
        elif value is not None and not (value is UNCHANGED and column.toastable):
            raise ValueError("neither text nor null")

    def _unchanged(self, values: Tuple) -> bytes:
        return _names(
            [name for name, value in zip(self._names, values, strict=True) if value is UNCHANGED],
        )
