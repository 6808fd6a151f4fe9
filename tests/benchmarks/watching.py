"""Waits for records in Kafka: a source's positions as they are committed, a topic's ends."""

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
"""Errors that a client gets for a moment for a newly created topic."""


class PositionsWatch:
    """Follows the positions topic from its current end, read-committed: every reader can see what it returns."""

    def __init__(self, site: Site) -> None:
        topic = positions_topic(site.prefix)
        settings = site.settings.kafka
        ensure_topic(settings, topic, partitions=1, config=STATE)
        self._consumer = clients.consumer(settings, "bench-positions", fetch_wait_max_ms=10)
        end = _end(self._consumer, TopicPartition(topic, 0))
        self._consumer.assign([TopicPartition(topic, 0, end)])

    def until_copied(self, process: Guarded) -> SnapshotState:
        """Return the table's state once it is completely copied."""
        done: list[SnapshotState] = []

        def copied(record: BaseModel) -> bool:
            if isinstance(record, SnapshotState) and record.done:
                done.append(record)
            return bool(done)

        self.until(copied, process)
        return done[0]

    def until(self, wanted: Callable[[BaseModel], bool], process: Guarded) -> float:
        """Return the monotonic time at which the first `wanted` record since the last call arrived.

        Raises HeadraceError if the producer ends first.
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
        raise HeadraceError(f"the producer did not get there within {PATIENCE:.0f} s", remedy="try fewer --rows")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()


class EndWatch:
    """Counts the records of a topic by its partitions' ends (transaction markers count too)."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._consumer = clients.consumer(settings, "bench-ends", isolation_level="read_uncommitted")
        found = self._consumer.list_topics(topic, timeout=_TIMEOUT).topics[topic]
        self._partitions = [TopicPartition(topic, partition) for partition in found.partitions]

    def count(self) -> int:
        """Return the sum of the current ends."""
        return sum(_end(self._consumer, place) for place in self._partitions)

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(RuntimeError):
            self._consumer.close()


def await_change(site: Site, ends: EndWatch, process: Guarded) -> None:
    """Change a row repeatedly until one change has arrived in the topic, which proves that `process` streams."""
    before = ends.count()
    with site.bench.sql(site.dsn) as connection:
        for _ in site.bench.watched("the reader", process, every=0.25):
            connection.execute(f"UPDATE {TABLE} SET updated_at = now() WHERE id = 1")
            if ends.count() > before:
                return


def _end(consumer: Consumer, place: TopicPartition) -> int:
    """Return a partition's end, waiting for a newly created topic."""
    deadline = time.monotonic() + _TIMEOUT
    while True:
        try:
            return int(consumer.get_watermark_offsets(place, timeout=_TIMEOUT)[1])
        except KafkaException as error:
            if error.args[0].code() not in _NOT_READY or time.monotonic() > deadline:
                raise
            consumer.list_topics(place.topic, timeout=_TIMEOUT)
            time.sleep(0.05)
