"""Events that could not be applied, kept for a person in `<prefix>.parked.<migration>`.

A parked event's key is `topic/partition/offset` and the topic is compacted, so that parking twice is one entry.
Its value is the event as it was; why and when stand in the headers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from confluent_kafka import Message, Producer

from consumers.batches import Parked
from consumers.ledger import Place
from infra import kafka, log, topics
from infra.settings import Settings
from schemas.errors import BrokerUnavailable
from schemas.positions import Offset
from schemas.topics import parked_topic

REASON_HEADER: Final = "reason"
RUN_HEADER: Final = "run"
KEY_HEADER: Final = "key"
"""The key that the event has in its own topic."""

_FLUSH_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One parked event. `name` is `topic/partition/offset`, by which a person chooses it."""

    name: str
    place: Place
    offset: Offset
    reason: str
    run: int
    parked_ms: int
    parked_at_offset: Offset
    """Where the entry stands in the parked topic; with `parked_ms` it tells one parking of an event from the next."""
    value: bytes
    key: bytes = b""
    """The key that the event has in its own topic."""

    @property
    def parked_at(self) -> datetime:
        """When it was parked, to the second, in UTC."""
        return datetime.fromtimestamp(self.parked_ms // 1000, UTC)


def read_parked(settings: Settings, migration: str) -> list[Entry]:
    """Return the events that are parked now, in the order of topic, partition and offset."""
    entries: dict[str, Entry] = {}
    for record in topics.LogReader(settings.kafka, parked_topic(settings.prefix, migration)).read():
        name = bytes(record.key() or b"").decode()
        if record.value() is None:
            entries.pop(name, None)
        else:
            entries[name] = _entry(name, record)
    return sorted(entries.values(), key=lambda entry: (entry.place, entry.offset))


def _headers(record: Message) -> Iterator[tuple[str, bytes]]:
    for name, value in dict(record.headers() or []).items():
        if isinstance(value, bytes):
            yield name, value


def _entry(name: str, record: Message) -> Entry:
    topic, partition, offset = name.rsplit("/", 2)
    headers = dict(_headers(record))
    return Entry(
        name,
        Place(topic, int(partition)),
        Offset(int(offset)),
        headers.get(REASON_HEADER, b"").decode(),
        int(headers.get(RUN_HEADER, b"0")),
        record.timestamp()[1],
        Offset(record.offset() or 0),
        bytes(record.value() or b""),
        headers.get(KEY_HEADER, b""),
    )


class Parking:
    """Where one migration's events are parked; connects when the first one comes."""

    def __init__(self, settings: Settings, migration: str) -> None:
        self._settings = settings
        self._topic = parked_topic(settings.prefix, migration)
        self._producer: Producer | None = None
        self._log = log.get(migration=migration)

    def keep(self, parked: Sequence[Parked], run: int) -> None:
        """Park events, durably, before the ledger moves past them; a duplicate replaces its equal.

        Raises BrokerUnavailable when Kafka did not confirm all of them: the caller must not go on.
        """
        producer = self._connected()
        for event in parked:
            self._log.warning(
                "parked",
                topic=event.place.topic,
                partition=event.place.partition,
                offset=event.offset,
                reason=event.reason,
            )
        self._send(
            producer,
            (
                {
                    "key": f"{event.place.topic}/{event.place.partition}/{event.offset}".encode(),
                    "value": event.value,
                    "headers": {REASON_HEADER: event.reason, RUN_HEADER: str(run), KEY_HEADER: event.key},
                }
                for event in parked
            ),
        )

    def remove(self, entries: Iterable[Entry]) -> None:
        """Take events out, durably, once what became of them is committed; a duplicate does nothing.

        Raises BrokerUnavailable as `keep` does: then they are still listed, and may be removed again.
        """
        self._send(self._connected(), ({"key": entry.name.encode(), "value": None} for entry in entries))

    def _connected(self) -> Producer:
        if self._producer is None:
            try:
                topics.ensure_topic(self._settings.kafka, self._topic, partitions=1)
            except TimeoutError:
                raise BrokerUnavailable(f"Kafka did not answer when {self._topic} was to be made") from None
            self._producer = kafka.producer(self._settings.kafka, acks="all")
        return self._producer

    def _send(self, producer: Producer, records: Iterable[dict[str, Any]]) -> None:
        failures: list[Any] = []
        for record in records:
            producer.produce(
                self._topic, **record, on_delivery=lambda error, _: failures.append(error) if error else None
            )
        left = producer.flush(_FLUSH_SECONDS)
        if failures:
            raise kafka.translate(failures[0], self._settings.kafka)
        if left:
            raise BrokerUnavailable(f"Kafka did not confirm {left} parked events within {_FLUSH_SECONDS:.0f} s")
