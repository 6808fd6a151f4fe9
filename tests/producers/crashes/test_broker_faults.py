"""A producer on three brokers while some of them are dead or hang."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # exported, but not by name
from structlog.testing import capture_logs

from consumers.testing.waiting import until
from infra.kafka import clients
from infra.kafka.durability import weaknesses
from infra.kafka.topic_configurations import TopicConfigurations
from infra.kafka.topics import ensure_topic
from infra.settings.model import KafkaSettings, Settings
from infra.stack.brokers.cluster import EmbeddedKafka
from schemas.errors import PreflightFailed
from schemas.topics import dead_letters_topic, positions_topic, schemas_topic
from tests.clusters import cluster, transaction_coordinator
from tests.conftest import Database
from tests.producers.processes import SCHEMA, write_settings
from tests.producers.sources import Source, capturing, copy_all, running, settings_for, topic_of

pytestmark = pytest.mark.stack

ROWS = "INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 40) i; CREATE TABLE u (id int PRIMARY KEY)"
_SETTINGS = {"broker.session.timeout.ms": "5000"}
"""Long enough that a start has to survive it: until then the other brokers consider a dead broker alive."""


@pytest.fixture(scope="module")
def brokers() -> Iterator[EmbeddedKafka]:
    with cluster(settings=_SETTINGS) as running:
        yield running


@pytest.fixture
def source(brokers: EmbeddedKafka, prefix: str, database: Database) -> Source:
    connection = database.connect()
    connection.execute(f"{SCHEMA}; {ROWS}".encode())
    return Source(settings_for(brokers.bootstrap_servers, prefix, database.dsn, "public.t", "public.u"), connection)


@pytest.mark.long
def test_producer_starts_after_a_broker_died_and_survives_its_coordinators(
    brokers: EmbeddedKafka, source: Source
) -> None:
    """At the start its topics are still to be made."""
    brokers.brokers[2].kill()
    with running(source) as producer:
        producer.caught_up()
        brokers.brokers[2].start()
        number = transaction_coordinator(brokers, f"{source.settings.prefix}.main")
        assert number is not None
        brokers.brokers[number].kill()
        source.connection.execute("UPDATE t SET n = n + 1")
        producer.caught_up()
    brokers.brokers[number].start()
    source.require_equal("public.t")


@pytest.mark.long
def test_stall_is_logged_while_it_lasts(brokers: EmbeddedKafka, source: Source) -> None:
    with capture_logs() as told, running(source) as producer:
        producer.caught_up()
        for number in (1, 2):
            brokers.brokers[number].freeze()
        try:
            source.connection.execute("UPDATE t SET n = n + 1")
            until(lambda: ("waiting for Kafka", "commit a transaction") in events(told), "the stall to be logged")
        finally:
            for number in (1, 2):
                brokers.brokers[number].thaw()
        producer.caught_up()
    assert ("Kafka kept the producer waiting", "commit a transaction") in events(told)
    source.require_equal("public.t")


def make(settings: KafkaSettings, name: str, partitions: int, replicas: int, config: Mapping[str, str]) -> None:
    client = clients.admin(settings)  # by name: a future ends when its client is collected
    new = NewTopic(name, partitions, replicas, config={"cleanup.policy": "compact", **config})
    client.create_topics([new])[name].result(180)


def said(settings: Settings) -> dict[str, list[str]]:
    """Return the findings about Kafka: problem → topics."""
    return {each.problem: [*each.shown] for each in weaknesses(settings, TopicConfigurations(settings.kafka))}


def test_topics_created_on_three_brokers_are_durable(brokers: EmbeddedKafka, prefix: str) -> None:
    settings = Settings(prefix=prefix, kafka=KafkaSettings(bootstrap_servers=brokers.bootstrap_servers))
    ensure_topic(settings.kafka, f"{prefix}.gitlab_main.t")
    ensure_topic(settings.kafka, positions_topic(prefix), partitions=1)
    ensure_topic(settings.kafka, dead_letters_topic(prefix, "m"), partitions=1)
    assert said(settings) == {}


@pytest.mark.long
def test_weak_existing_topics_are_reported_by_check_and_start(
    brokers: EmbeddedKafka, prefix: str, database: Database, tmp_path: Path
) -> None:
    connection = database.connect()
    connection.execute(f"{SCHEMA}; CREATE TABLE u (id int PRIMARY KEY)".encode())
    settings = settings_for(brokers.bootstrap_servers, prefix, database.dsn, "public.t", "public.u")
    alone, careless = topic_of(settings, "public.t"), topic_of(settings, "public.u")
    make(settings.kafka, alone, 2, 1, {})
    make(settings.kafka, careless, 5, 3, {"min.insync.replicas": "1", "unclean.leader.election.enable": "true"})
    make(settings.kafka, positions_topic(prefix), 1, 2, {})
    expected = {
        "topics are on one broker only": [alone],
        "a record is acknowledged once one broker has it (min.insync.replicas=1)": [careless],
        "a broker that lacks records may become leader": [careless],
        "topics have 5 partitions, and kafka.partitions is 2": [careless],
        "nothing can be written while one of the topics' 2 brokers is down": [positions_topic(prefix)],
    }

    def found(problems: Mapping[str, list[str]]) -> dict[str, list[str]]:
        starts = {start: topics for start in expected for said, topics in problems.items() if start in said}
        assert len(starts) == len(problems), problems
        return starts

    # Each broker learns of a new topic separately.
    until(lambda: found(said(settings)) == expected, "the brokers to know the topics")
    config = write_settings(settings, tmp_path / "headrace.toml")
    shown = subprocess.run(
        [sys.executable, "-m", "headrace", "check", "--json", "--config", str(config)], capture_output=True, check=False
    )
    advice = [each for each in json.loads(shown.stdout)["advice"] if each["where"] == "kafka"]
    assert found({each["problem"]: each["shown"] for each in advice}) == expected
    with capture_logs() as told:
        copy_all(Source(settings, connection))
    warned = [each for each in told if each["event"] == "Kafka setup is not durable"]
    assert found({each["reason"]: [each["first"]] for each in warned}) == expected


def test_unavailable_replication_factor_is_reported(brokers: EmbeddedKafka, prefix: str) -> None:
    settings = Settings(
        prefix=prefix, kafka=KafkaSettings(bootstrap_servers=brokers.bootstrap_servers, replication_factor=4)
    )
    (problem,) = said(settings)
    assert "kafka.replication_factor is 4, and 3 brokers are in service" in problem


def test_existing_topics_suffice_for_a_principal_without_create(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> dict[str, Any]:
        raise KafkaException(KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED))

    settings = source.settings
    with monkeypatch.context() as restricted:
        restricted.setattr(AdminClient, "create_topics", refused)
        with pytest.raises(PreflightFailed, match="uthorization failed"):
            copy_all(source)
    for name in (positions_topic(settings.prefix), schemas_topic(settings.prefix), topic_of(settings, "public.t")):
        make(settings.kafka, name, 2, 3, {})
    monkeypatch.setattr(AdminClient, "create_topics", refused)
    with pytest.raises(PreflightFailed, match="uthorization failed"):
        copy_all(source)
    chosen = replace(source, settings=capturing(settings, "public.t"))
    copy_all(chosen)
    chosen.require_equal("public.t")


def events(told: Sequence[Mapping[str, object]]) -> list[tuple[object, object]]:
    return [(each["event"], each.get("to")) for each in told]
