"""Finds the rows of a storage's earlier walks that the current walk did not find, so that they can be removed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from infra.kafka import clients
from infra.settings.model import KafkaSettings
from schemas.codec.header import HeaderReader

_RECORDS: Final = 5_000
_SECONDS: Final = 30.0


def leftovers(
    settings: KafkaSettings, topic: str, source: str, walk_id: int, partitions: int
) -> Iterator[tuple[int, bytes]]:
    """Yield partition and key of each row of `source` that no walk since `walk_id` wrote again.

    Called after the walk's rows are committed. Memory holds the keys of one partition. Raises BrokerUnavailable.
    """
    header = HeaderReader()
    # Read uncommitted, so that the open transaction of another storage's walk does not hide records of this one.
    # No other process writes this one's; at worst a row that a fenced walk aborted is removed, which is harmless.
    with clients.reading(
        settings,
        isolation_level="read_uncommitted",
        enable_partition_eof=True,
        queued_max_messages_kbytes=4096,  # per partition; the default would queue 64 MB
        fetch_wait_max_ms=10,  # a broker answers a fetch at a partition's end only after this wait
    ) as client:
        for partition in range(partitions):
            clients.assign(client, [TopicPartition(topic, partition, 0)])
            old: dict[bytes, None] = {}
            for message in _to_the_end(client, topic):
                key, value = message.key(), message.value()
                assert isinstance(key, bytes)  # every record of the topic has one
                old.pop(key, None)
                if value is not None:
                    _, database, _, position, _ = header(value)
                    if database == source and position.commit_lsn < walk_id:
                        old[key] = None
            for key in old:
                yield partition, key


def _to_the_end(client: Consumer, topic: str) -> Iterator[Message]:
    """Yield the records of the assigned partition, up to its end."""
    deadline = time.monotonic() + _SECONDS
    while True:
        for message in client.consume(_RECORDS, 0.02):
            deadline = time.monotonic() + _SECONDS
            error = message.error()
            if error is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                return
            else:
                raise KafkaException(error)
        if time.monotonic() > deadline:
            raise TimeoutError(f"topic {topic} could not be read to its end")
