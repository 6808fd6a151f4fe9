"""Clusters of several brokers for tests, and helpers for them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.stack.brokers.cluster import EmbeddedKafka
from infra.stack.processes.keeper import Keeper


@contextmanager
def cluster(brokers: int = 3, settings: Mapping[str, str] | None = None) -> Iterator[EmbeddedKafka]:
    """So many brokers, running, with `settings` added to each; gone at the end with their data."""
    with tempfile.TemporaryDirectory(prefix="headrace-test-", ignore_cleanup_errors=True) as place:
        keeper = Keeper()
        try:
            kafka = EmbeddedKafka(Path(place), keeper, ports=(0,) * brokers, settings=settings)
            kafka.start()
            yield kafka
        finally:
            keeper.close()


def leader(kafka: EmbeddedKafka | str, topic: str, partition: int = 0) -> int | None:
    """Return the number of the broker that leads a partition; None while none does, or while none answers."""
    servers = kafka if isinstance(kafka, str) else kafka.bootstrap_servers
    with suppress(KafkaException):
        found = AdminClient({"bootstrap.servers": servers, "log_level": 0}).list_topics(topic, timeout=10).topics[topic]
        if partition in found.partitions and found.partitions[partition].leader >= 0:
            return int(found.partitions[partition].leader)
    return None


def transaction_coordinator(kafka: EmbeddedKafka | str, transactional_id: str, partitions: int = 4) -> int | None:
    """Return the number of the broker that coordinates a producer's transactions; None while none does.

    It leads the partition of __transaction_state that Java's hash of the id chooses, of as many as the stack has.
    """
    code = 0
    for character in transactional_id:
        code = (31 * code + ord(character)) & 0xFFFFFFFF
    if code >= 1 << 31:
        code -= 1 << 32
    return leader(kafka, "__transaction_state", abs(code) % partitions)


def all_in_sync(kafka: EmbeddedKafka) -> bool:
    """Return whether every replica of every partition has what its leader has."""
    with suppress(KafkaException):
        client = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})
        topics = client.list_topics(timeout=10).topics.values()
        return all(len(each.isrs) == len(each.replicas) for topic in topics for each in topic.partitions.values())
    return False
