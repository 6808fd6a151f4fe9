"""Noticing when something is in Kafka: a source's positions as they are committed, a topic's ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from confluent_kafka import TopicPartition
from pydantic import BaseModel

from infra import kafka
from infra.positions import SnapshotState, StreamState
from infra.settings import KafkaSettings
from infra.stack.processes import Guarded
from infra.topics import STATE, ensure_topic
from schemas.errors import HeadraceError
from schemas.topics import positions_topic
from tests.benchmarks.bench import PATIENCE, Site

_TIMEOUT: Final = 30.0


class PositionsWatch:
    """Follows the topic of positions from its present end, read-committed: what it shows is there for everyone."""

    def __init__(self, site: Site) -> None:
        topic = positions_topic(site.prefix)
        settings = site.settings.kafka
        ensure_topic(settings, topic, partitions=1, config=STATE)
        self._consumer = kafka.consumer(settings, "bench-positions", fetch_wait_max_ms=10)
        self._consumer.list_topics(topic, timeout=_TIMEOUT)  # a client knows no partitions of a topic just made
        end = self._consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=_TIMEOUT)[1]
        self._consumer.assign([TopicPartition(topic, 0, end)])

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
                    raise HeadraceError(f"the producer ended: {process.last_lines()}", remedy="see why above")
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
        self._consumer = kafka.consumer(settings, "bench-ends", isolation_level="read_uncommitted")
        found = self._consumer.list_topics(topic, timeout=_TIMEOUT).topics[topic]
        self._partitions = [TopicPartition(topic, partition) for partition in found.partitions]

    def count(self) -> int:
        """Return the sum of the ends as they are now."""
        ends = (self._consumer.get_watermark_offsets(place, timeout=_TIMEOUT) for place in self._partitions)
        return sum(end[1] for end in ends)

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(RuntimeError):
            self._consumer.close()
