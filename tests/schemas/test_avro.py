"""The schemas of a table: field order, names and types."""

from __future__ import annotations

import fastavro
import pytest

from schemas.avro import COLUMN_PROPERTY, key_schema, lacking_columns, value_schema
from schemas.column_types import column_type
from schemas.events import Column, Relation

COLUMNS = (Column("id", 20), Column("1st name", 25), Column("at", 1184))


def test_header_fields_come_first() -> None:
    schema = value_schema(Relation(1, "public", "t", "d", COLUMNS, ("id",)), "gitlab_main")
    assert [field["name"] for field in schema["fields"]] == [
        *("op", "source", "ts_ms", "unchanged", "before", "after", "exact")
    ]
    source = [field["name"] for field in schema["fields"][1]["type"]["fields"]]
    constant = ["version", "connector", "name", "db", "gitlab_schema", "schema", "table"]
    assert source == [*constant, "txId", "ts_ms", "snapshot", "lsn", "ordinal"]
    fastavro.parse_schema(schema)


def test_name_invalid_in_avro_is_kept_as_a_property() -> None:
    relation = Relation(1, "odd schema", "t", "f", COLUMNS)
    schema = value_schema(relation, "gitlab_main")
    field = schema["fields"][4]["type"][1]["fields"][1]
    assert field["name"] == "_x31_st_x20_name"
    assert field[COLUMN_PROPERTY] == "1st name"
    assert schema["namespace"] == "headrace.gitlab_main.odd_x20_schema.t"
    assert lacking_columns(relation) == ()


def test_a_key_is_never_null_and_text_where_its_type_is_partial() -> None:
    schema = key_schema(Relation(1, "public", "t", "d", COLUMNS, ("id",)), "gitlab_main", ["at", "id"])
    assert [(field["name"], field["type"]) for field in schema["fields"]] == [("at", "string"), ("id", "long")]


@pytest.mark.parametrize("oid", [16, 20, 21, 23, 25, 26, 700, 701, 1082, 1083, 1114, 1184, 2950])
def test_every_column_is_null_or_of_one_type(oid: int) -> None:
    null, avro = column_type(oid).branches
    assert null == "null"
    # Converters of Kafka Connect name the types of dates and decimals themselves, and refuse a second name.
    logical = avro.get("logicalType") if isinstance(avro, dict) else None
    assert ("connect.name" in avro) == (logical is not None and logical != "date")


@pytest.mark.parametrize(
    ("precision", "scale", "kind"), [(10, 2, "decimal"), (3, 3, "decimal"), (2, 5, "text"), (5, -2, "text")]
)
def test_a_numeric_is_a_decimal_where_avro_has_one(precision: int, scale: int, kind: str) -> None:
    assert column_type(1700, (precision << 16 | scale & 0x7FF) + 4).kind == kind
