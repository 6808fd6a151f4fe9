"""Changes of a table that may continue in the same topic, and those that may not."""

from __future__ import annotations

import json

import pytest

from schemas.avro import key_schema, value_schema
from schemas.column_types import Schema
from schemas.compatibility import incompatibilities
from schemas.events import Column, Relation

NUMERIC_10_2, NUMERIC_12_2, NUMERIC_10_3 = (((p << 16) | s) + 4 for p, s in ((10, 2), (12, 2), (10, 3)))


def table(*columns: Column, identity: str = "d") -> Relation:
    return Relation(1, "public", "t", identity, (Column("id", 20), *columns), ("id",))


def value(*columns: Column, identity: str = "d") -> Schema:
    schema: Schema = json.loads(json.dumps(value_schema(table(*columns, identity=identity), "gitlab_main")))
    return schema


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([Column("a", 25)], [Column("a", 25), Column("b", 23)]),
        ([Column("a", 25), Column("b", 23)], [Column("a", 25)]),
        ([Column("a", 25), Column("b", 23)], [Column("b", 23), Column("a", 25)]),
        ([Column("a", 23)], [Column("a", 20)]),
        ([Column("a", 21)], [Column("a", 23)]),
        ([Column("a", 1043, 24)], [Column("a", 25)]),
        ([Column("a", 600_001)], [Column("a", 25)]),
        ([Column("a", 2950)], [Column("a", 25)]),
        ([Column("a", 700)], [Column("a", 701)]),
        ([Column("a", 1700, NUMERIC_10_2)], [Column("a", 1700, NUMERIC_12_2)]),
    ],
)
def test_compatible_change_may_continue_in_the_topic(old: list[Column], new: list[Column]) -> None:
    assert incompatibilities(value(*old), value(*new)) == []


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (Column("name", 20), Column("name", 25), "column name: bigint → text"),
        (Column("name", 25), Column("name", 20), "column name: text → bigint"),
        (Column("a", 20), Column("a", 23), "column a: bigint → integer"),
        (Column("a", 25), Column("a", 2950), "column a: text → uuid"),
        (Column("a", 1114), Column("a", 1184), "column a: timestamp → timestamp with time zone"),
        (Column("a", 1184), Column("a", 25), "column a: timestamp with time zone → text"),
        (
            Column("a", 1700, NUMERIC_10_2),
            Column("a", 1700, NUMERIC_10_3),
            "column a: numeric(10,2) → numeric(10,3)",
        ),
        (Column("a b", 16), Column("a b", 25), "column a b: boolean → text"),
    ],
)
def test_incompatible_change_is_reported(old: Column, new: Column, sentence: str) -> None:
    assert incompatibilities(value(old), value(new)) == [sentence]


def test_a_replica_identity_may_change() -> None:
    assert incompatibilities(value(), value(identity="f")) == []


def test_a_key_may_not_change_at_all() -> None:
    relation = table(Column("name", 25))
    wider = Relation(1, "public", "t", "d", (Column("id", 23),), ("id",))
    by_id = key_schema(relation, "gitlab_main", ["id"])
    assert incompatibilities(by_id, by_id) == []
    assert incompatibilities(key_schema(wider, "gitlab_main", ["id"]), by_id) == ["key column id: integer → bigint"]
    both = key_schema(relation, "gitlab_main", ["id", "name"])
    assert incompatibilities(by_id, both) == ["key: id → id, name"]


def test_another_envelope_is_another_version() -> None:
    other = value()
    other["fields"][0]["type"] = "long"
    assert incompatibilities(value(), other) == ["envelope: written by another version of headrace"]
