"""Repositories on a primary: some with records, some without, some on a secondary."""

from __future__ import annotations

from typing import Any

import psycopg
from confluent_kafka import Producer

from consumers.testing import case
from consumers.testing.settling import until_shown
from infra.kafka import clients, topics
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from producers.walk.directory import Repository
from producers.walk.events import WalkEncoder
from producers.walk.run import storage_walk_topic
from tests.consumers.praefect_database import SCHEMAS, flags, hosts, records, track
from tests.producers.storages import hashed

KNOWN = [hashed(project) for project in range(10)]
MISSING = [hashed(project) for project in range(10, 40)]
SECONDARY = [hashed(project) for project in range(40, 50)]


class Case(case.Case):
    """See case.Case."""

    def __init__(self, settings: Settings, connection: psycopg.Connection[Any]) -> None:
        self._settings = settings
        self._connection = connection
        self._topic = storage_walk_topic(settings)
        self._walks = 0
        connection.execute(SCHEMAS["new"])
        self._partitions = topics.ensure_topic(settings.kafka, self._topic)

    def insert(self) -> None:
        track(self._connection, KNOWN)

    def publish(self) -> None:
        self._walks += 1
        for storage, paths in {"gitaly-0": KNOWN + MISSING, "gitaly-1": SECONDARY}.items():
            self._walk(storage, paths)

    def _walk(self, storage: str, paths: list[str]) -> None:
        encoder = WalkEncoder(
            open_registry(self._settings),
            self._topic,
            "default",
            storage,
            walk_id=self._walks,
            is_primary=storage == "gitaly-0",
            partitions=self._partitions,
        )
        found = [encoder.found(Repository(path.encode(), 1_700_000_000_000_000))[0] for path in paths]
        self._send([*encoder.start(), *found, *encoder.end()])

    def _send(self, sent: list[dict[str, Any]]) -> None:
        producer: Producer = clients.producer(self._settings.kafka, transactional_id=f"{self._settings.prefix}-walks")
        producer.init_transactions(120)
        producer.begin_transaction()
        for each in sent:
            producer.produce(self._topic, **each)
        producer.commit_transaction(120)
        until_shown(self._settings.kafka, self._topic)

    def publish_as(self, xid: int) -> bool:
        del xid  # a walk reads no database
        return False

    def wanted(self) -> case.Rows:
        wanted: dict[object, object] = {path: (0, None, path, {"gitaly-0": 0}) for path in MISSING}
        return {**wanted, "default": True}

    def left(self) -> int:
        return 1

    def rows(self) -> case.Rows:
        hosted = hosts(self._connection)
        found: dict[object, object] = {
            path: (*record, hosted[path]) for path, record in records(self._connection).items()
        }
        found.update(flags(self._connection))
        return found

    def writes(self) -> int:
        found = self._connection.execute(
            "SELECT count(*) FROM writes WHERE application LIKE 'headrace consume%'"
        ).fetchone()
        assert found is not None
        return int(found[0])

    def settle_elsewhere(self) -> None:
        track(self._connection, MISSING)
        self._connection.execute("INSERT INTO virtual_storages VALUES ('default', true)")

    def recreate(self) -> None:
        for table in ("repositories", "storage_repositories", "virtual_storages"):
            self._connection.execute(f"DELETE FROM {table}")
        self.insert()
        self.publish()
