"""Weaknesses of Kafka with a single broker. On three brokers: tests/producers/crashes/test_broker_faults.py."""

from __future__ import annotations

import pytest

from infra.kafka.durability import weaknesses
from infra.kafka.topic_configurations import TopicConfigurations
from infra.kafka.topics import ensure_topic
from infra.settings.model import KafkaSettings, Settings

pytestmark = pytest.mark.stack


def test_single_broker_is_a_warning_and_only_partition_counts_of_topics_are_reported(
    bootstrap_servers: str, prefix: str
) -> None:
    settings = Settings(prefix=prefix, kafka=KafkaSettings(bootstrap_servers=bootstrap_servers, partitions=2))
    ensure_topic(settings.kafka, f"{prefix}.gitlab_main.t")
    ensure_topic(settings.kafka, f"{prefix}.gitlab_main.u", partitions=3)
    (one_broker, partitions) = weaknesses(settings, TopicConfigurations(settings.kafka))
    assert one_broker.problem.startswith("WARNING: Kafka has one broker")
    assert partitions.problem.startswith("topics have 3 partitions, and kafka.partitions is 2")
    assert partitions.shown == (f"{prefix}.gitlab_main.u",)
