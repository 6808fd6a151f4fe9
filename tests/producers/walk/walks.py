"""Walks for the tests: their settings, and the topic's records."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from confluent_kafka import TopicPartition

from infra.kafka import clients
from infra.settings.model import Settings
from producers.walk.run import storage_walk_topic, walk
from schemas.events import Row
from tests.producers.folding import Record, fold, read_topic, require_order

PARTITIONS = 3


@dataclass
class Walks:
    """A prefix's walks: their settings, and the topic's records."""

    bootstrap_servers: str
    prefix: str
    storages: Mapping[str, Mapping[str, str]]
    virtual_storage: str = "default"
    praefect: str | None = None
    """The dsn of Praefect's database; None: not in the settings."""

    @property
    def values(self) -> dict[str, Any]:
        section = {"database": "praefect", "primary": "gitaly-0", "storages": dict(self.storages)}
        databases = {"praefect": {"dsn": self.praefect, "gitlab_schemas": ["praefect"]}} if self.praefect else {}
        return {
            "prefix": self.prefix,
            "kafka": {"bootstrap_servers": self.bootstrap_servers, "partitions": PARTITIONS},
            "databases": databases,
            "virtual_storages": {self.virtual_storage: section},
        }

    @property
    def settings(self) -> Settings:
        return Settings(**self.values)

    def walk(self, *, all_storages: bool = False) -> list[Any]:
        return walk(self.settings, self.virtual_storage, threading.Event(), all_storages=all_storages)

    def records(self) -> list[Record]:
        records = read_topic(self.settings, storage_walk_topic(self.settings))
        require_order(records)
        return records

    def rows(self, **columns: object) -> list[Row]:
        """Return the events of the rows with these values, in order of position."""
        events = [record.event for record in self.records() if record.event is not None]
        events.sort(key=lambda event: (event.source.database, event.source.position))
        rows = [event.after for event in events if event.after is not None]
        return [row for row in rows if columns.items() <= row.items()]

    def folded(self, **columns: object) -> list[Row]:
        """Return the rows of the compacted topic."""
        return [row for row in fold(self.records()).values() if columns.items() <= row.items()]

    def config(self, directory: Path) -> Path:
        file = directory / "headrace.toml"
        file.write_text(tomli_w.dumps(self.values))
        return file


def ends(settings: Settings, topic: str) -> list[int]:
    """Return each partition's end offset, including uncommitted records."""
    with clients.reading(settings.kafka, isolation_level="read_uncommitted") as client:
        return [client.get_watermark_offsets(TopicPartition(topic, each), 30)[1] for each in range(PARTITIONS)]
