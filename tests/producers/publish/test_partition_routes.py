"""A partition's changes are published as its table's, in the table's column order."""

from __future__ import annotations

import pytest

from producers.publish.partition_routes import key_of, route_of
from producers.source.schema_changes import TableStopped
from schemas.errors import Malformed
from schemas.events import Column, Relation
from tests.producers.captures import RELATION, MemoryRegistry, feed

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


def test_partition_whose_identity_lacks_key_stops_table() -> None:
    partition = Relation(16_500, "public", "t_1", "n", (Column("id", 23), Column("v", 25)))
    with pytest.raises(
        TableStopped, match=r"the replica identity of its partition public\.t_1 leaves out key column id"
    ):
        route_of(partition, partition, feed(MemoryRegistry()))
