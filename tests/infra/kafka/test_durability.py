"""What of Kafka would lose events with one broker. On three brokers: tests/producers/crashes/test_broker_faults.py."""

from __future__ import annotations

import pytest

from infra.kafka.durability import weaknesses
from infra.kafka.topics import ensure_topic
from infra.settings.model import KafkaSettings, Settings

pytestmark = pytest.mark.stack


def test_one_broker_is_said_loudly_and_nothing_of_its_topics_but_their_number(
    bootstrap_servers: str, prefix: str
) -> None:
    settings = Settings(prefix=prefix, kafka=KafkaSettings(bootstrap_servers=bootstrap_servers, partitions=2))
    ensure_topic(settings.kafka, f"{prefix}.gitlab_main.t")
    ensure_topic(settings.kafka, f"{prefix}.gitlab_main.u", partitions=3)
    (one_broker, partitions) = weaknesses(settings)
    assert one_broker.problem.startswith("WARNING: Kafka has one broker")
    assert partitions.problem.startswith("topics have 3 partitions, and kafka.partitions is 2")
    assert partitions.shown == (f"{prefix}.gitlab_main.u",)
