"""Events that could not be applied, kept for a person in `<prefix>.parked.<migration>`.

A parked event's key is `topic/partition/offset` and the topic is compacted, so that parking twice is one entry.
Its value is the event as it was; why and when stand in the headers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import Producer

from consumers.batches import Parked
from infra import kafka, log, topics
from infra.settings import Settings
from schemas.errors import BrokerUnavailable
from schemas.topics import parked_topic

REASON_HEADER: Final = "reason"
RUN_HEADER: Final = "run"
KEY_HEADER: Final = "key"
"""The key that the event has in its own topic."""

_FLUSH_SECONDS: Final = 30.0


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
        if self._producer is None:
            topics.ensure_topic(self._settings.kafka, self._topic, partitions=1)
            self._producer = kafka.producer(self._settings.kafka, acks="all")
        failures: list[Any] = []
        for event in parked:
            self._log.warning(
                "parked",
                topic=event.place.topic,
                partition=event.place.partition,
                offset=event.offset,
                reason=event.reason,
            )
            headers: dict[str, str | bytes | None] = {
                REASON_HEADER: event.reason,
                RUN_HEADER: str(run),
                KEY_HEADER: event.key,
            }
            self._producer.produce(
                self._topic,
                key=f"{event.place.topic}/{event.place.partition}/{event.offset}".encode(),
                value=event.value,
                headers=headers,
                on_delivery=lambda error, _: failures.append(error) if error else None,
            )
        left = self._producer.flush(_FLUSH_SECONDS)
        if failures:
            raise kafka.translate(failures[0], self._settings.kafka)
        if left:
            raise BrokerUnavailable(f"Kafka did not confirm {left} parked events within {_FLUSH_SECONDS:.0f} s")
