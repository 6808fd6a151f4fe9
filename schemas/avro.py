"""Builds the Avro schemas of a table's events and keys; the same relation always gives the same schema.

The envelope and its `source` have Debezium's field names; `source.gitlab_schema`, `source.ordinal`, `unchanged` and
`exact` are headrace's own. `op` and `source` come first and `ordinal` is the last field of `source`, so that all bytes
before the ordinal are the same for a transaction's changes of one kind to one table. `exact` is the last field, since
which values it has is known once the rows are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from schemas import formats
from schemas.column_types import ColumnType, Schema, column_type
from schemas.errors import UsageError
from schemas.events import Column, Relation
from schemas.names import escape_identifier

COLUMN_PROPERTY: Final = "headrace.column"
"""The field property with a column's name, if it is not a valid Avro name."""

IDENTITY_PROPERTY: Final = "headrace.identity"
"""The envelope property with the columns that an update's `before` contains; absent: all of them."""

ENVELOPE: Final = "Envelope"
"""The name of the record of every event."""

FORMAT_PROPERTY: Final = "headrace.format"
"""The envelope property with the format of its events (schemas.formats.EVENTS); absent: 1."""


def _namespace(relation: Relation, gitlab_schema: str) -> str:
    parts = [gitlab_schema, relation.table]
    if relation.schema != "public":
        parts.insert(1, relation.schema)
    return ".".join(["headrace", *map(escape_identifier, parts)])


def type_of(column: Column) -> ColumnType:
    """Return the type by which the column's values are encoded."""
    return column_type(column.type_oid, column.type_modifier)


def _field(column: Column, avro: Any, *, nullable: bool) -> Schema:
    name = escape_identifier(column.name)
    field: Schema = {"name": name, "type": avro}
    if nullable:
        field["default"] = None
    if name != column.name:
        field[COLUMN_PROPERTY] = column.name
    return field


def lacking_columns(relation: Relation) -> tuple[str, ...]:
    """Return the columns that are missing in an old tuple of the stream, by the replica identity."""
    if relation.replica_identity == "f":
        return ()
    return tuple(column.name for column in relation.columns if column.name not in relation.identity_columns)


def value_schema(relation: Relation, gitlab_schema: str) -> Schema:
    """Return the schema of the table's change events: an envelope around the row before and after."""
    row = {
        "type": "record",
        "name": "Row",
        "fields": [_field(column, type_of(column).branches, nullable=True) for column in relation.columns],
    }
    source = {
        "type": "record",
        "name": "Source",
        "fields": [
            {"name": "version", "type": "string"},
            {"name": "connector", "type": "string"},
            {"name": "name", "type": "string"},
            {"name": "db", "type": "string"},
            {"name": "gitlab_schema", "type": "string"},
            {"name": "schema", "type": "string"},
            {"name": "table", "type": "string"},
            {"name": "txId", "type": ["null", "long"], "default": None},
            {"name": "ts_ms", "type": "long"},
            {"name": "snapshot", "type": "string"},
            {"name": "lsn", "type": "long"},
            {"name": "ordinal", "type": "long"},
        ],
    }
    texts = {"type": "map", "values": "string"}
    exact = {
        "type": "record",
        "name": "Exact",
        "fields": [{"name": "before", "type": texts}, {"name": "after", "type": texts}],
    }
    envelope: Schema = {
        "type": "record",
        "name": ENVELOPE,
        "namespace": _namespace(relation, gitlab_schema),
        "fields": [
            {"name": "op", "type": "string"},
            {"name": "source", "type": source},
            {"name": "ts_ms", "type": "long"},
            {"name": "unchanged", "type": {"type": "array", "items": "string"}},
            {"name": "before", "type": ["null", row], "default": None},
            {"name": "after", "type": ["null", "Row"], "default": None},
            {"name": "exact", "type": ["null", exact], "default": None},
        ],
    }
    envelope[FORMAT_PROPERTY] = formats.EVENTS.version
    if relation.replica_identity != "f":
        envelope[IDENTITY_PROPERTY] = list(relation.identity_columns)
    return envelope


def require_format(schema: Schema, where: str) -> None:
    """Raise NewerFormat or OlderFormat for the schema of events in a format that this headrace does not read.

    `where` names the schema in messages. A key's schema has no format: its id is part of the key.
    """
    if schema.get("name") == ENVELOPE or FORMAT_PROPERTY in schema:
        formats.EVENTS.require(schema.get(FORMAT_PROPERTY, 1), where)


def key_schema(relation: Relation, gitlab_schema: str, key: Sequence[str]) -> Schema:
    """Return the schema of the table's message keys: the columns named in `key`, in that order, never null.

    Raises UsageError if `key` is empty or has a column that the relation lacks.
    """
    columns = {column.name: column for column in relation.columns}
    missing = [name for name in key if name not in columns]
    if missing or not key:
        raise UsageError(
            f"{relation.qualified_name} has no key column {', '.join(missing) or 'at all'}",
            remedy="name columns of the table under [databases.<name>.keys]",
        )
    return {
        "type": "record",
        "name": "Key",
        "namespace": _namespace(relation, gitlab_schema),
        "fields": [_field(columns[name], type_of(columns[name]).key, nullable=False) for name in key],
    }


TRUNCATE_KEY: Final[Schema] = {"type": "record", "name": "TruncateKey", "namespace": "headrace", "fields": []}
"""The schema of a truncate's key, which has no columns: a compacted topic requires a key, and readers its schema."""


def type_name(avro: Any) -> str:
    """Return the name of a type without its logical type.

    Raises KeyError or TypeError when it is neither a name nor an object with one.
    """
    name: str = avro if isinstance(avro, str) else avro["type"]
    return name


def columns_of(record: Schema) -> list[str]:
    """Return the PostgreSQL names of a row's or key's fields, in order."""
    return [field.get(COLUMN_PROPERTY, field["name"]) for field in record["fields"]]


def row_record(envelope: Schema) -> Schema:
    """Return the record of the row inside an envelope that `value_schema` made.

    Raises KeyError or IndexError if it is no such envelope.
    """
    before = next(field for field in envelope["fields"] if field["name"] == "before")
    record: Schema = before["type"][1]
    return record
