"""A partition's changes are published as its table's, in the table's column order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from producers.publish.partition_routes import key_of, route_of
from producers.publish.table_publisher import TableFeed, TableTopic
from producers.source.schema_changes import TableNow, TableStopped
from schemas.errors import Malformed
from schemas.events import Column, Relation
from tests.producers.captures import RELATION, TABLE, MemoryRegistry, feed

PARTITION = Relation(16_500, "public", "t_1", "d", (Column("v", 25), Column("id", 23)), ("id",))


def test_table_keeps_its_column_order() -> None:
    route = route_of(RELATION, RELATION, feed(MemoryRegistry()))
    assert route.row is None  # a tuple of the stream is a row
    assert key_of(route, [b"1", b"v"]) == (b"1",)


def test_a_partition_has_its_tables_order_and_encoder() -> None:
    table = feed(MemoryRegistry())
    route = route_of(PARTITION, PARTITION, table)
    assert route.row is not None
    row = route.row([b"v", b"1"])
    assert row == [b"1", b"v"]
    assert key_of(route, row) == (b"1",)
    assert route.encoder is route_of(RELATION, RELATION, table).encoder
    with pytest.raises(Malformed, match=r"public\.t_1: a change lacks its key \(id\)"):
        key_of(route, [None, b"v"])


def test_generated_columns_are_left_out_by_one_answer_of_the_catalog() -> None:
    """A second one could be of a later moment, in which the table has other columns."""
    numbers = {"id": 1, "v": 2}
    catalog = TableNow("public.t", numbers, frozenset(), frozenset({frozenset({"id"})}), True, {}, frozenset({"g"}))
    asked: list[TableNow] = []

    def now() -> TableNow:
        asked.append(catalog)
        return catalog

    table = TableFeed("main", TABLE, TableTopic(3), MemoryRegistry(), None, not_before=7, now=now)
    id_, v = RELATION.columns
    described = replace(RELATION, columns=(id_, Column("g", 23), v))
    for _ in range(2):
        asked.clear()
        route = route_of(described, described, table)
        assert route.row is not None
        assert route.row([b"1", b"2", b"v"]) == [b"1", b"v"]
        assert len(asked) == 1


def test_partition_whose_identity_lacks_key_stops_table() -> None:
    partition = Relation(16_500, "public", "t_1", "n", (Column("id", 23), Column("v", 25)))
    with pytest.raises(
        TableStopped, match=r"the replica identity of its partition public\.t_1 leaves out key column id"
    ):
        route_of(partition, partition, feed(MemoryRegistry()))
