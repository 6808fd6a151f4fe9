"""Several brokers of one cluster: what they keep while one of them is killed, frozen or restarted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType  # type: ignore[attr-defined]  # not declared

from consumers.testing.waiting import until
from infra.stack.brokers.cluster import EmbeddedKafka, brokers_in
from schemas.errors import BrokerUnavailable
from tests.clusters import cluster, leader
from tests.infra.stack.test_embedded import produce_committed, read

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def kafka() -> Iterator[EmbeddedKafka]:
    with cluster() as running:
        yield running


def admin(kafka: EmbeddedKafka) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.bootstrap_servers})


def make(kafka: EmbeddedKafka, topic: str) -> None:
    client = admin(kafka)  # by name: a future ends when its client is collected
    for done in client.create_topics([NewTopic(topic, 1)]).values():
        done.result(120)
    until(lambda: leader(kafka, topic) is not None, "the topic has a leader")


@pytest.mark.long
def test_topics_are_on_three_brokers_and_need_two(kafka: EmbeddedKafka, prefix: str) -> None:
    make(kafka, prefix)
    client = admin(kafka)
    produce_committed(kafka.bootstrap_servers, prefix, [b"kept"])
    topics = client.list_topics(timeout=120).topics
    for name in (prefix, "__transaction_state"):
        assert {tuple(sorted(each.replicas)) for each in topics[name].partitions.values()} == {(1, 2, 3)}
        resource = ConfigResource(ResourceType.TOPIC, name)
        found = client.describe_configs([resource])[resource].result(120)
        assert (found["min.insync.replicas"].value, found["unclean.leader.election.enable"].value) == ("2", "false")


def test_a_start_of_what_runs_changes_nothing(kafka: EmbeddedKafka) -> None:
    before = kafka.ports, [broker.process.identity for broker in kafka.brokers.values()]
    kafka.start()
    assert (kafka.ports, [broker.process.identity for broker in kafka.brokers.values()]) == before


@pytest.mark.long
def test_the_others_take_over_from_one_that_is_frozen(kafka: EmbeddedKafka, prefix: str) -> None:
    make(kafka, prefix)
    frozen = leader(kafka, prefix)
    assert frozen is not None
    kafka.brokers[frozen].freeze()
    try:
        others = ",".join(broker.bootstrap_servers for broker in kafka.brokers.values() if broker.number != frozen)
        until(lambda: leader(others, prefix) not in (None, frozen), "another broker leads")
        assert kafka.brokers[frozen].running
    finally:
        kafka.brokers[frozen].thaw()
    produce_committed(kafka.bootstrap_servers, prefix, [b"after"])
    assert read(kafka.bootstrap_servers, prefix, 1) == [b"after"]


@pytest.mark.long
def test_all_are_stopped_and_one_alone_does_not_come_up_and_the_whole_does(
    kafka: EmbeddedKafka, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(kafka, prefix)
    produce_committed(kafka.bootstrap_servers, prefix, [b"kept"])
    ports = kafka.ports
    kafka.brokers[1].freeze()
    kafka.stop()
    assert not any(broker.running for broker in kafka.brokers.values())
    with pytest.raises(KafkaException):
        admin(kafka).list_topics(timeout=1)
    with monkeypatch.context() as patched:
        patched.setattr("infra.stack.brokers.broker.READY_SECONDS", 3.0)
        with pytest.raises(BrokerUnavailable, match="did not answer"):
            kafka.brokers[2].start()
    assert not kafka.brokers[2].running
    kafka.start()
    assert kafka.ports == ports
    assert brokers_in(kafka.directory) == 3
    assert read(kafka.bootstrap_servers, prefix, 1) == [b"kept"]
