"""Decodes Kafka records to events: fastavro for whole rows, headrace's own reader for selected columns.

Every function here raises only Malformed for bytes that do not match the schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

from schemas.avro import COLUMN_PROPERTY, IDENTITY_PROPERTY, columns_of, row_record
from schemas.codec.header import SNAPSHOT, Header, HeaderReader, header
from schemas.codec.projection import Project, projection
from schemas.column_types import Schema
from schemas.errors import Malformed
from schemas.events import UNCHANGED, ChangeEvent, Op, Source
from schemas.positions import Lsn, Position
from schemas.wire import split_wire

__all__ = ["Decoder", "Header", "HeaderReader", "KeyDecoder", "Project", "header", "projection", "split_wire"]

Read = Callable[[BytesIO], Any]
"""Reads an Avro value from a stream, which is then after it."""


def _reader(schema: Schema) -> Read:
    """Return fastavro's reader of a schema; raises any error if it is not one."""
    # Most commands make decoders for records that they then seldom meet, such as those of a selection by keys.
    from fastavro import parse_schema, schemaless_reader  # noqa: PLC0415

    parsed = parse_schema(schema)
    return lambda stream: schemaless_reader(stream, parsed, None)


class Decoder:
    """Reads records of one writer schema: the registry's schema for the record's id.

    `writer_schema` is a value schema created by `schemas.avro.value_schema`. Raises Malformed if it is not.
    """

    def __init__(self, writer_schema: Schema) -> None:
        try:
            self._read = _reader(writer_schema)
            row = row_record(writer_schema)
            self._columns = {field["name"]: field.get(COLUMN_PROPERTY, field["name"]) for field in row["fields"]}
        except Exception as error:
            raise Malformed("not the schema of a headrace event") from error
        identity = writer_schema.get(IDENTITY_PROPERTY)
        self._lacking = [name for name in columns_of(row) if identity is not None and name not in identity]
        self._schema = writer_schema

    def decode(self, value: bytes) -> ChangeEvent:
        """Return the event of a whole record, with UNCHANGED for columns that the stream omitted."""
        envelope = read_record(self._read, value)
        try:
            return self._event(envelope)
        except (ValueError, KeyError, TypeError) as error:
            raise Malformed("a record that is not a headrace event") from error

    def _event(self, envelope: dict[str, Any]) -> ChangeEvent:
        op = Op(envelope["op"])
        source = envelope["source"]
        exact = envelope["exact"] or {}
        before, after = (self._row(envelope[side], exact.get(side, {})) for side in ("before", "after"))
        unchanged = envelope["unchanged"]
        if before is not None:
            # A delete's record lists the missing columns of its row; an update's those of the new row, the schema those
            # of the old one.
            _leave_out(before, unchanged if op is Op.DELETE else self._lacking)
        if after is not None:
            _leave_out(after, unchanged)
        return ChangeEvent(
            op,
            Source(
                source["name"],
                source["gitlab_schema"],
                source["schema"],
                source["table"],
                Position(Lsn(source["lsn"]), source["ordinal"]),
                source["txId"],
                source["ts_ms"],
                SNAPSHOT[source["snapshot"]],
            ),
            envelope["ts_ms"],
            before,
            after,
        )

    def _row(self, cells: dict[str, Any] | None, exact: dict[str, str]) -> dict[str, object] | None:
        row = {} if cells is None else {name: cells[field] for field, name in self._columns.items()}
        if not exact.keys() <= row.keys():
            raise ValueError("an unknown column among the exact texts")
        return None if cells is None else row | exact


def _leave_out(row: dict[str, object], names: Iterable[str]) -> None:
    for name in names:
        if name not in row:
            raise ValueError("an unknown column among those left out")
        row[name] = UNCHANGED


def read_record(read: Read, value: bytes) -> dict[str, Any]:
    """Return the Avro record in a whole Kafka record, read by `read`."""
    _, start = split_wire(value)
    stream = BytesIO(value)
    stream.seek(start)
    try:
        record = read(stream)
    except Exception as error:
        # Any error comes from the bytes: fastavro has no error class of its own for them.
        raise Malformed("a record that does not match its schema") from error
    if stream.tell() != len(value):
        raise Malformed("a record with bytes after its end")
    assert isinstance(record, dict)  # a record schema is read as one
    return record


class KeyDecoder:
    """Reads message keys of one writer schema."""

    def __init__(self, writer_schema: Schema) -> None:
        try:
            self._read = _reader(writer_schema)
            self._columns = dict(
                zip(
                    (field["name"] for field in writer_schema["fields"]),
                    columns_of(writer_schema),
                    strict=True,
                )
            )
        except Exception as error:
            raise Malformed("not the schema of a headrace key") from error

    def decode_key(self, key: bytes) -> dict[str, object]:
        """Return the key's columns by name; empty for a truncate's key."""
        record = read_record(self._read, key)
        return {name: record[field] for field, name in self._columns.items()}
