"""Helpers for the tests of feed and capture: a table, a registry in memory, and decoded records."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from infra.state.positions import SnapshotState
from producers.publish.table_publisher import TableFeed, TableTopic
from producers.source.tables import CapturedTable
from schemas.codec.decoder import Decoder, KeyDecoder
from schemas.events import ChangeEvent, Column, Relation
from schemas.positions import Position
from schemas.wire import split_wire

RELATION = Relation(16_400, "public", "t", "d", (Column("id", 23), Column("v", 25)), ("id",))
TABLE = CapturedTable(RELATION, "gitlab_main", "p.gitlab_main.t", ("id",), True, 100)
OTHER = Relation(16_401, "public", "other", "d", (Column("id", 23),), ("id",))
"""A relation that is published but not captured."""


class MemoryRegistry:
    """Gives every schema the next number."""

    def __init__(self) -> None:
        self.schemas: list[dict[str, Any]] = []

    def register(self, subject: str, schema: dict[str, Any]) -> int:
        del subject
        if schema not in self.schemas:
            self.schemas.append(schema)
        return self.schemas.index(schema)

    def register_all(self, wanted: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """One by one is as quick here."""

    def forget(self, subject: str) -> None:
        """Nothing is compared here."""

    def schema(self, schema_id: int) -> dict[str, Any]:
        return self.schemas[schema_id]

    def known(self, schema_ids: Collection[int]) -> dict[int, Any]:
        return {number: self.schemas[number] for number in schema_ids if number < len(self.schemas)}


def feed(
    registry: MemoryRegistry, state: SnapshotState | None = None, *, partitions: int = 3, **table: Any
) -> TableFeed:
    """Return the feed of TABLE, with other fields where they are given."""
    return TableFeed("main", replace(TABLE, **table), TableTopic(partitions), registry, state, not_before=7)


def done() -> SnapshotState:
    """The state of a table whose snapshot is over."""
    return SnapshotState.model_validate(
        {"source": "main", "table": "public.t", "topic": TABLE.topic, "done": True,
         "copied": [{"after": None, "upto": None}]}
    )  # fmt: skip


def taken_events(registry: MemoryRegistry, of: TableFeed) -> list[ChangeEvent]:
    """Take the waiting records, without tombstones."""
    values = [record["value"] for record in of.take() if record["value"] is not None]
    return [Decoder(registry.schema(split_wire(value)[0])).decode(value) for value in values]


def taken(registry: MemoryRegistry, of: TableFeed) -> list[tuple[str, dict[str, object], Position | None, Any]]:
    """Take the waiting records: op, key, position, row after."""
    shown: list[tuple[str, dict[str, object], Position | None, Any]] = []
    for record in of.take():
        key_id, _ = split_wire(record["key"])
        key = KeyDecoder(registry.schema(key_id)).decode_key(record["key"])
        if record["value"] is None:
            shown.append(("tombstone", key, None, None))
            continue
        value_id, _ = split_wire(record["value"])
        event = Decoder(registry.schema(value_id)).decode(record["value"])
        shown.append((str(event.op), key, event.source.position, event.after))
    return shown
