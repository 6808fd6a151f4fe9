"""Noticing when something is in Kafka: a source's positions as they are committed, a topic's ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from pydantic import BaseModel

from infra.kafka import clients
from infra.kafka.topics import STATE, ensure_topic
from infra.settings.model import KafkaSettings
from infra.stack.processes.keeper import Guarded
from infra.state.positions import SnapshotState, StreamState
from schemas.errors import HeadraceError
from schemas.topics import positions_topic
from tests.benchmarks.bench import PATIENCE, TABLE, Site

_TIMEOUT: Final = 30.0
_NOT_READY: Final = (KafkaError._UNKNOWN_PARTITION, KafkaError.NOT_LEADER_FOR_PARTITION)
"""What a client is told for a moment of a topic that was just made."""


class PositionsWatch:
    """Follows the topic of positions from its present end, read-committed: what it shows is there for everyone."""

    def __init__(self, site: Site) -> None:
        topic = positions_topic(site.prefix)
        settings = site.settings.kafka
        ensure_topic(settings, topic, partitions=1, config=STATE)
        self._consumer = clients.consumer(settings, "bench-positions", fetch_wait_max_ms=10)
        end = _end(self._consumer, TopicPartition(topic, 0))
        self._consumer.assign([TopicPartition(topic, 0, end)])

    def until_copied(self, process: Guarded) -> SnapshotState:
        """Return the state of the table once it is copied as a whole."""
        done: list[SnapshotState] = []

        def copied(record: BaseModel) -> bool:
            if isinstance(record, SnapshotState) and record.done:
                done.append(record)
            return bool(done)

        self.until(copied, process)
        return done[0]

    def until(self, wanted: Callable[[BaseModel], bool], process: Guarded) -> float:
        """Return the monotonic second at which the first record after the last call that is `wanted` arrived.

        Raises HeadraceError when the producer ends first.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            message = self._consumer.poll(0.5)
            now = time.monotonic()
            if message is None:
                if process.poll() is not None:
                    raise HeadraceError(f"the producer ended: {process.last_lines()}", remedy="")
                continue
            value = message.value()
            if message.error() is None and value is not None:
                kind = SnapshotState if b"/" in (message.key() or b"") else StreamState
                if wanted(kind.model_validate_json(value)):
                    return now
        raise HeadraceError(f"the producer was not there within {PATIENCE:.0f} s", remedy="try fewer --rows")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()


class EndWatch:
    """Counts the records of a topic by its partitions' ends (markers of transactions count too)."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._consumer = clients.consumer(settings, "bench-ends", isolation_level="read_uncommitted")
        found = self._consumer.list_topics(topic, timeout=_TIMEOUT).topics[topic]
        self._partitions = [TopicPartition(topic, partition) for partition in found.partitions]

    def count(self) -> int:
        """Return the sum of the ends as they are now."""
        return sum(_end(self._consumer, place) for place in self._partitions)

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(RuntimeError):
            self._consumer.close()


def await_change(site: Site, ends: EndWatch, process: Guarded) -> None:
    """Change a row now and then until one change has come into the topic: `process` streams."""
    before = ends.count()
    with site.bench.sql(site.dsn) as connection:
        for _ in site.bench.watched("the reader", process, every=0.25):
            connection.execute(f"UPDATE {TABLE} SET updated_at = now() WHERE id = 1")
            if ends.count() > before:
                return


def _end(consumer: Consumer, place: TopicPartition) -> int:
    """Return a partition's end, waiting for one of a topic that was just made."""
    deadline = time.monotonic() + _TIMEOUT
    while True:
        try:
            return int(consumer.get_watermark_offsets(place, timeout=_TIMEOUT)[1])
        except KafkaException as error:
            if error.args[0].code() not in _NOT_READY or time.monotonic() > deadline:
                raise
            consumer.list_topics(place.topic, timeout=_TIMEOUT)
            time.sleep(0.05)
