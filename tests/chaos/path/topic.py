"""Reads the records of the application's topic, from its beginning to its end, for the checker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from confluent_kafka import Message, TopicPartition

from consumers.testing.settling import until_shown
from infra.kafka import clients
from infra.kafka.topics import end_offsets
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from schemas.codec.projection import projection
from schemas.events import ChangeEvent
from schemas.wire import HEADER_BYTES, split_wire
from tests.chaos.path.histories import TOMBSTONE, Event
from tests.chaos.path.tables import VALUE


def events(settings: Settings, topic: str) -> Iterator[Event]:
    """Yield every record, partition by partition, in offset order.

    None of them is compacted away yet: Kafka does not compact a partition's active segment.
    """
    until_shown(settings.kafka, topic)
    read = _Reader(settings)
    found: dict[int, list[Event]] = {partition: [] for partition in sorted(end_offsets(settings.kafka, topic))}
    left = set(found)
    with clients.reading(settings.kafka, enable_partition_eof=True, fetch_wait_max_ms=10) as client:
        clients.assign(client, [TopicPartition(topic, partition, 0) for partition in left])
        while left:
            for message in client.consume(1_000, 0.1):
                if message.error() is None:
                    event = read.event(message)
                    found[event.partition].append(event)
                else:
                    left.discard(message.partition() or 0)
    for partition in found.values():
        yield from partition


class _Reader:
    def __init__(self, settings: Settings) -> None:
        self._schemas = open_registry(settings)
        self._read: dict[bytes, Callable[[bytes], ChangeEvent]] = {}
        self._keys: dict[bytes, int] = {}
        """A record's key → the row's: a tombstone has only the former."""

    def event(self, message: Message) -> Event:
        partition, offset = message.partition() or 0, message.offset() or 0
        value, record_key = message.value(), message.key() or b""
        assert isinstance(record_key, bytes)
        if value is None:
            return Event(partition, offset, TOMBSTONE, self._keys.get(record_key, -1))
        if value[:HEADER_BYTES] not in self._read:
            schema_id, _ = split_wire(value)
            self._read[value[:HEADER_BYTES]] = projection(self._schemas.schema(schema_id), ("id", *VALUE))
        event = self._read[value[:HEADER_BYTES]](value)
        row = event.after if event.after is not None else event.before
        key = row["id"] if row is not None else None
        assert key is None or isinstance(key, int)
        if key is not None:
            self._keys[record_key] = key
        after = event.after
        shown = None if after is None else "/".join("" if after[name] is None else str(after[name]) for name in VALUE)
        position = event.source.position
        return Event(
            partition, offset, str(event.op), key, shown, position.commit_lsn, position.ordinal, event.source.xid
        )
