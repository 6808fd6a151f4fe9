"""Encodes a table's changes as Kafka records: PostgreSQL's text in, Avro bytes out, without a dict in between.

If headrace was installed with a C compiler, `schemas.codec._compiled` encodes most rows and passes the others on to
`schemas.codec.row_encoder`, which else encodes all of them. fastavro is the reference of both, byte for byte
(tests/schemas/codec/test_encoder.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from schemas import formats
from schemas.avro import key_schema, lacking_columns, type_of, value_schema
from schemas.codec import implementation
from schemas.codec.row_encoder import Record, RowEncoder, Tuple, encode_names
from schemas.codec.values import NULL, VALUE, encode_text
from schemas.codec.varints import encode_long
from schemas.column_types import Schema
from schemas.events import Op, Origin, Relation
from schemas.positions import Lsn
from schemas.wire import wire_header

if TYPE_CHECKING:
    from schemas.codec._compiled import Plan


_SNAPSHOT: Final = {True: encode_text(b"true"), False: encode_text(b"false")}
"""Debezium's `source.snapshot` is a text."""


def _string(text: str) -> bytes:
    return encode_text(text.encode())


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
        origin: Origin,
        value_schema_id: int,
        key_schema_id: int,
        compiled: bool = True,
    ) -> None:
        """With `compiled` false, rows are encoded in Python even if there is a compiled codec."""
        self.relation = relation
        self.value_schema: Schema = value_schema(relation, gitlab_schema)
        self.key_schema: Schema = key_schema(relation, gitlab_schema, key)
        self._key_header = wire_header(key_schema_id)
        program = formats.PROGRAM, origin.connector, origin.name, origin.database
        where = b"".join(map(_string, (*program, gitlab_schema, relation.schema, relation.table)))
        self._op_prefixes = {op: wire_header(value_schema_id) + _string(op) + where for op in Op}
        rows = RowEncoder(relation, key, self._key_header)
        plan = self.plan = self._planned(key, rows) if compiled else None
        self._copy = rows.copy if plan is None else plan.encode_copy
        self.key, self.change, self.update, self.delete = (
            (rows.key, rows.change, rows.update, rows.delete)
            if plan is None
            else (plan.key, plan.change, plan.update, plan.delete)
        )

    def _planned(self, key: Sequence[str], rows: RowEncoder) -> Plan | None:
        names = [column.name for column in self.relation.columns]
        lacking = lacking_columns(self.relation)
        return implementation.plan(
            [type_of(column) for column in self.relation.columns],
            [names.index(name) for name in key],
            [names.index(name) for name in lacking],
            header=self._key_header,
            lacking_names=encode_names(lacking),
            names=[_string(name) for name in names],
            python=implementation.Fallbacks(rows.copy, rows.key, rows.change, rows.update, rows.delete),
        )

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
                _SNAPSHOT[snapshot],
                encode_long(lsn),
            )
        )

    def copy_prefix(self, *, lsn: Lsn, ordinal: int, ts_ms: int) -> bytes:
        """Return the bytes before each row of a snapshot: `op` r, at the stream's current position."""
        prefix = self.event_prefix(Op.READ, lsn=lsn, xid=None, ts_ms=ts_ms, snapshot=True)
        return prefix + encode_long(ordinal) + encode_long(ts_ms) + b"\x00\x00\x02"

    plan: Plan | None
    """The compiled encoder, None if rows are encoded in Python."""

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

    def truncate(self, prefix: bytes, ordinal: int, ts_ms: int) -> bytes:
        """Return the value of a truncate, without rows; its key is of `schemas.avro.TRUNCATE_KEY`."""
        return b"".join((prefix, encode_long(ordinal), encode_long(ts_ms), b"\x00\x00\x00\x00"))

    def encode_copy_chunk(self, data: bytes, value_prefix: bytes) -> tuple[list[bytes], list[bytes]]:
        """Return the keys and the values of whole lines of COPY's text format, in order.

        `value_prefix` is `copy_prefix`'s. The lines have the relation's columns, and all are complete.
        """
        return self._copy(data, value_prefix)

    _copy: Callable[[bytes, bytes], tuple[list[bytes], list[bytes]]]
