"""Making, measuring, reading and deleting topics on a real broker."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported, not by name
    AdminClient,
    ConfigResource,
    OffsetSpec,
    ResourceType,
)

from consumers.testing.settling import until_shown
from infra.kafka import clients
from infra.kafka.topics import STATE, LogReader, delete_topics, end_offsets, ensure_topic, with_records, written_offsets
from infra.settings.model import KafkaSettings


@pytest.fixture
def settings(bootstrap_servers: str) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=bootstrap_servers, partitions=3)


def transactional(settings: KafkaSettings) -> Producer:
    producer = clients.producer(settings, transactional_id=secrets.token_hex(4))
    producer.init_transactions(120)
    return producer


def send(settings: KafkaSettings, topic: str, values: Iterable[bytes]) -> None:
    producer = clients.producer(settings)
    for value in values:
        producer.produce(topic, value, key=value, partition=0)
    assert producer.flush(120) == 0


def config_of(settings: KafkaSettings, topic: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    client = clients.admin(settings)  # by name: a future ends when its client is collected
    return {name: entry.value for name, entry in client.describe_configs([resource])[resource].result(180).items()}


def read(reader: LogReader) -> list[bytes | None]:
    return [message.value() for message in reader.read()]


def test_a_topic_is_made_compacted_with_the_settings_partitions(settings: KafkaSettings, prefix: str) -> None:
    assert ensure_topic(settings, prefix) == 3
    assert set(end_offsets(settings, prefix)) == {0, 1, 2}
    assert config_of(settings, prefix)["cleanup.policy"] == "compact"


def test_the_configuration_asked_for_is_the_topics(settings: KafkaSettings, prefix: str) -> None:
    ensure_topic(settings, prefix, partitions=1, config=STATE)
    assert dict(STATE).items() <= config_of(settings, prefix).items()


def test_an_existing_topic_keeps_its_partitions_and_records(settings: KafkaSettings, prefix: str) -> None:
    assert ensure_topic(settings, prefix, partitions=2) == 2
    send(settings, prefix, [b"kept"])
    assert ensure_topic(settings, prefix, partitions=5) == 2
    assert ensure_topic(settings, prefix) == 2
    assert end_offsets(settings, prefix) == {0: 1, 1: 0}


def test_missing_topic_has_no_end_offsets(settings: KafkaSettings, prefix: str) -> None:
    assert end_offsets(settings, prefix) == {}
    assert prefix not in clients.admin(settings).list_topics(timeout=120).topics, "asking did not make it"


def test_end_offsets_exclude_uncommitted_records(settings: KafkaSettings, prefix: str) -> None:
    ensure_topic(settings, prefix, partitions=1)
    send(settings, prefix, [b"a", b"b"])
    producer = transactional(settings)
    producer.begin_transaction()
    producer.produce(prefix, b"c", key=b"k", partition=0)
    producer.flush(120)
    assert end_offsets(settings, prefix) == {0: 2}
    assert written_offsets(settings, prefix) == {0: 3}
    producer.commit_transaction(120)
    until_shown(settings, prefix)
    assert end_offsets(settings, prefix) == {0: 4}, "the record, and the mark of its commit"


class LosesItsLeaders:
    """An admin client to which no partition has a leader at first, as of a broker that stood still for a while."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def list_offsets(self, places: dict[TopicPartition, OffsetSpec], **options: Any) -> Mapping[Any, Future[Any]]:
        self.asked += 1
        if self.asked > 2:
            return self._client.list_offsets(places, **options)
        failed: Future[Any] = Future()
        failed.set_exception(KafkaException(KafkaError(KafkaError._NOENT, "No leaders found")))
        return dict.fromkeys(places, failed)


def test_topics_without_a_leader_are_asked_again(
    settings: KafkaSettings, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_topic(settings, prefix)
    send(settings, prefix, [b"there"])
    client = LosesItsLeaders(clients.admin(settings))
    monkeypatch.setattr(clients, "admin", lambda _: client)
    assert with_records(settings, [prefix]) == {prefix}
    assert client.asked > 2


def test_reading_a_missing_and_an_empty_topic(settings: KafkaSettings, prefix: str) -> None:
    reader = LogReader(settings, prefix)
    assert read(reader) == []
    ensure_topic(settings, prefix, partitions=1)
    assert read(reader) == []


def test_reading_continues_where_it_stopped(settings: KafkaSettings, prefix: str) -> None:
    reader = LogReader(settings, prefix)
    assert read(reader) == []
    ensure_topic(settings, prefix, partitions=1)
    send(settings, prefix, [b"1", b"2"])
    assert read(reader) == [b"1", b"2"]
    assert read(reader) == []
    send(settings, prefix, [b"3"])
    assert read(reader) == [b"3"]
    assert read(LogReader(settings, prefix)) == [b"1", b"2", b"3"]


def test_interrupted_reading_continues_after_the_last_record_taken(settings: KafkaSettings, prefix: str) -> None:
    ensure_topic(settings, prefix, partitions=1)
    send(settings, prefix, [b"1", b"2", b"3"])
    reader = LogReader(settings, prefix)
    records = reader.read()
    assert next(records).value() == b"1"
    records.close()  # type: ignore[attr-defined]  # a generator, promised as an iterator
    assert read(reader) == [b"2", b"3"]


def test_reading_leaves_out_aborted_and_unfinished_transactions(settings: KafkaSettings, prefix: str) -> None:
    ensure_topic(settings, prefix, partitions=1)
    producer = transactional(settings)
    producer.begin_transaction()
    producer.produce(prefix, b"aborted", key=b"k", partition=0)
    producer.flush(120)
    producer.abort_transaction(120)
    send(settings, prefix, [b"kept"])
    until_shown(settings, prefix)
    producer.begin_transaction()
    producer.produce(prefix, b"later", key=b"k", partition=0)
    producer.flush(120)
    reader = LogReader(settings, prefix)
    assert read(reader) == [b"kept"]
    producer.commit_transaction(120)
    until_shown(settings, prefix)
    assert read(reader) == [b"later"]


def test_deleting_existing_and_missing_topics(settings: KafkaSettings, prefix: str) -> None:
    names = [f"{prefix}.a", f"{prefix}.b"]
    for name in names:
        ensure_topic(settings, name, partitions=1)
    send(settings, names[0], [b"old"])
    delete_topics(settings, [*names, f"{prefix}.never"])
    assert not set(names) & clients.admin(settings).list_topics(timeout=120).topics.keys()
    delete_topics(settings, names)
    ensure_topic(settings, names[0], partitions=1)
    assert read(LogReader(settings, names[0])) == [], "made anew, it is empty"
