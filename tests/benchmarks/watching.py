"""Waits for records in Kafka: a source's positions as they are committed, a topic's ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from pydantic import BaseModel

from infra.kafka import clients
from infra.kafka.topics import STATE, end_offsets_of, ensure_topic, shows_all
from infra.settings.model import KafkaSettings
from infra.stack.processes.keeper import Guarded
from infra.state.positions import SnapshotState, StreamState
from schemas.errors import HeadraceError
from schemas.topics import positions_topic
from tests.benchmarks.bench import PATIENCE, Site

_TIMEOUT: Final = 30.0
_AT_ONCE: Final = 10_000
_TOUCH_SECONDS: Final = 1.0
"""Longer than Debezium collects a batch: poll.interval.ms, by default 0.5 s."""
_NOT_READY: Final = (KafkaError._UNKNOWN_PARTITION, KafkaError.NOT_LEADER_FOR_PARTITION)
"""Errors that a client gets for a moment for a newly created topic."""


@dataclass(slots=True)
class CopiedTables:
    """Which of a number of tables are completely copied: their rows, by table."""

    tables: int
    rows: dict[str, int] = field(default_factory=dict)

    def complete(self, record: BaseModel) -> bool:
        """Whether all of them are, once `record` is committed."""
        if isinstance(record, SnapshotState) and record.done:
            self.rows[record.table] = record.rows
        return len(self.rows) == self.tables


class PositionsWatch:
    """Follows the positions topic from its current end, read-committed: every reader can see what it returns."""

    def __init__(self, site: Site) -> None:
        topic = positions_topic(site.prefix)
        settings = site.settings.kafka
        ensure_topic(settings, topic, partitions=1, config=STATE)
        self._consumer = clients.consumer(settings, "bench-positions", fetch_wait_max_ms=10)
        end = _end(self._consumer, TopicPartition(topic, 0))
        self._consumer.assign([TopicPartition(topic, 0, end)])
        self._tables = len(site.topics)

    def until_copied(self, process: Guarded) -> None:
        """Return once all tables of the site are completely copied."""
        self.until(CopiedTables(self._tables).complete, process)

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
    """Counts the committed records of topics by their partitions' ends (transaction markers count too)."""

    def __init__(self, settings: KafkaSettings, topics: Sequence[str]) -> None:
        self._settings = settings
        self._topics = topics

    def count(self) -> int:
        """Return the sum of the current ends."""
        return sum(place.offset for place in self.ends())

    def ends(self) -> list[TopicPartition]:
        """Return the current end of each partition, by one request: a reader is measured meanwhile."""
        found = end_offsets_of(self._settings, self._topics)
        return [TopicPartition(topic, *place) for topic, ends in found.items() for place in ends.items()]


def await_change(site: Site, ends: EndWatch, process: Guarded) -> None:
    """Change a row repeatedly until changes arrive in the topics, which proves that `process` streams.

    Returns once nothing more arrives: a reader that is stopped then leaves no change for its next start.
    """
    before = last = ends.count()
    with site.bench.sql(site.dsn) as connection:
        for _ in site.bench.watched("the reader", process, every=_TOUCH_SECONDS):
            now = ends.count()
            if before < now == last:
                return
            if now == before:
                connection.execute(site.touch)
            last = now


def partitions_of(consumer: Consumer, topics: Iterable[str], offset: int) -> list[TopicPartition]:
    """Return `offset` in every partition of existing topics."""
    return [
        TopicPartition(topic, partition, offset)
        for topic in topics
        for partition in consumer.list_topics(topic, timeout=_TIMEOUT).topics[topic].partitions
    ]


def beginnings(settings: KafkaSettings, topics: Iterable[str]) -> list[TopicPartition]:
    """Return the beginning of every partition of existing topics."""
    with clients.reading(settings) as client:
        return partitions_of(client, topics, OFFSET_BEGINNING)


def committed_records(settings: KafkaSettings, begin: Sequence[TopicPartition]) -> int:
    """Count the records after `begin` that a read-committed consumer gets; no producer may be writing.

    It waits first until all partitions show what is committed, which they do one after the other. Raises HeadraceError
    if the topics cannot be read to their ends in time.
    """
    deadline = time.monotonic() + PATIENCE
    topics = {place.topic for place in begin}
    while not all(shows_all(settings, topic) for topic in topics) and time.monotonic() < deadline:
        time.sleep(0.05)
    with clients.reading(settings, enable_partition_eof=True, fetch_wait_max_ms=10) as client:
        clients.assign(client, begin)
        left, count = {(place.topic, place.partition) for place in begin}, 0
        while left:
            if time.monotonic() > deadline:
                raise HeadraceError(f"{len(left)} partitions were not read to their ends", remedy="try fewer --rows")
            for message in client.consume(_AT_ONCE, timeout=0.1):
                error = message.error()
                if error is None:
                    count += 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard((message.topic() or "", message.partition() or 0))
                else:
                    raise KafkaException(error)
    return count


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
