"""Writes events and the position that they reach to Kafka, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from pydantic import BaseModel

from infra.kafka import clients
from infra.kafka.topics import ONLY_PARTITION
from infra.settings.model import KafkaSettings
from infra.state.positions import encode
from producers.publish.kafka_stalls import Stalls
from schemas.errors import BrokerUnavailable, HeadraceError

_INIT_SECONDS = 30.0
_COMMIT_SECONDS = 45.0
_QUEUE_MESSAGES = 1_000_000
_QUEUE_KBYTES = 96 * 1024
_LINGER_MS = 50
"""A commit sends what waits. Before that only full batches are worth a request."""
_ANY_PARTITION = -1


class Relay:
    """A transactional producer; a transaction starts with the first record and ends with `commit`.

    Opening one fences every earlier producer with the same `transactional_id` and aborts its open transaction. Any
    error leaves the relay unusable: close it, open another, and resume from the positions in Kafka.
    """

    def __init__(self, settings: KafkaSettings, transactional_id: str, positions_topic: str) -> None:
        self._settings = settings
        self._positions_topic = positions_topic
        self._open = False
        self._stalls = Stalls(transactional_id)
        try:
            self._producer = self._opened(transactional_id)
        except BaseException:
            self._stalls.close()
            raise

    def _opened(self, transactional_id: str) -> Producer:
        with clients.translated(self._settings):
            producer = clients.producer(
                self._settings,
                transactional_id=transactional_id,
                transaction_timeout_ms=60_000,
                defaults={
                    "queue.buffering.max.messages": _QUEUE_MESSAGES,
                    "queue.buffering.max.kbytes": _QUEUE_KBYTES,
                    "linger.ms": _LINGER_MS,
                    "batch.num.messages": 100_000,
                    "batch.size": 1_000_000,
                },
            )
            with self._stalls.watching("end an earlier producer's transaction"):
                producer.init_transactions(_INIT_SECONDS)
            return producer

    @property
    def pending(self) -> bool:
        """Whether a transaction is open."""
        return self._open

    def send(self, topic: str, records: list[dict[str, Any]]) -> None:
        """Add records, each a dict of `key`, `value` (None is a tombstone) and perhaps `partition`, in order."""
        if not records:
            return
        with clients.translated(self._settings):
            self._begin()
            if max(map(len, records)) <= 2:
                self._queue(topic, records, _ANY_PARTITION)
            else:
                # confluent-kafka ignores the partition of a record in a batch, but not that of the batch.
                for partition, run in groupby(records, lambda record: record.pop("partition", _ANY_PARTITION)):
                    self._queue(topic, list(run), partition)
            self._producer.poll(0)

    def record(self, states: Iterable[tuple[bytes, BaseModel | None]]) -> None:
        """Add records of the positions topic; None removes one."""
        self.send(
            self._positions_topic,
            [{"key": key, "value": state and encode(state), "partition": ONLY_PARTITION} for key, state in states],
        )

    def commit(self) -> None:
        """Commit the transaction; return when the broker has confirmed it."""
        if not self._open:
            return
        with clients.translated(self._settings), self._stalls.watching("commit a transaction"):
            self._producer.commit_transaction(_COMMIT_SECONDS)
        self._open = False

    def close(self) -> None:
        """Abort the open transaction if the broker still answers; never raises."""
        self._stalls.close()
        try:
            if self._open:
                self._producer.purge()
                self._producer.abort_transaction(2.0)
        except KafkaException:
            pass  # the next producer's init_transactions aborts it
        self._open = False

    def _queue(self, topic: str, records: list[dict[str, Any]], partition: int) -> None:
        left = self._not_taken(topic, records, partition)
        while left:
            with self._stalls.watching("take records"):
                before = len(left)
                while len(left) == before:
                    self._producer.poll(0.05)
                    left = self._not_taken(topic, left, partition)

    def _not_taken(self, topic: str, records: list[dict[str, Any]], partition: int) -> list[dict[str, Any]]:
        """Queue the records; return those that did not fit."""
        if self._producer.produce_batch(topic, records, partition) == len(records):
            return []
        return [record for record in records if self._refused(topic, record)]

    def _begin(self) -> None:
        if not self._open:
            self._producer.begin_transaction()
            self._open = True

    def _refused(self, topic: str, record: dict[str, Any]) -> bool:
        """Whether the record did not fit into the queue; raises for any other error."""
        error: KafkaError | None = record.pop("_error", None)
        if error is None:
            return False
        if error.code() == KafkaError._QUEUE_FULL:
            return True
        if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise BrokerUnavailable("a topic of this source was deleted while the producer wrote to it")
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            raise HeadraceError(
                f"a row for topic {topic} is {len(record['value'] or b'')} bytes long, above the Kafka client's limit",
                remedy='set "message.max.bytes" under [kafka.options], and max.message.bytes of the topic',
            )
        if error.code() in (KafkaError._FATAL, KafkaError._STATE):
            # The transaction has already failed; only its commit returns the reason.
            self._producer.commit_transaction(_COMMIT_SECONDS)
        raise KafkaException(error)
