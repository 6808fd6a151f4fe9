"""Reports Kafka configuration that loses events with one broker: too few brokers, replicas or in-sync replicas."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from infra.cli.advice import Advice
from infra.kafka import clients
from infra.kafka.topic_configurations import TopicConfigurations
from infra.settings.model import Settings
from schemas.topics import dead_letters_topic, positions_topic, schemas_topic

_TIMEOUT: Final = 30.0
_IN_SYNC: Final = 2
"""The fewest replicas that must have a record before it is acknowledged."""

_ONE_BROKER: Final = (
    "Kafka has one broker: data on its disk has no copy, and nothing is read or written while it is down",
    "run three or more, with default.replication.factor=3 and min.insync.replicas=2 (docs/how-to/running.md)",
)


def weaknesses(settings: Settings, topics: TopicConfigurations) -> Iterator[Advice]:
    """Yield what could lose or block events when a broker dies, for topics that start with the prefix.

    What may not be read is skipped. Raises BrokerUnavailable.
    """
    with clients.translated(settings.kafka):
        found = clients.admin(settings.kafka).list_topics(timeout=_TIMEOUT)
    brokers, wanted = len(found.brokers), settings.kafka.replication_factor
    if brokers == 1:
        yield Advice("kafka", f"WARNING: {_ONE_BROKER[0]}", (), _ONE_BROKER[1])
    elif brokers < wanted:
        yield Advice(
            "kafka",
            f"WARNING: kafka.replication_factor is {wanted}, and {brokers} brokers are in service: new topics"
            " have to wait",
            (),
            "restore the others, or lower it",
        )
    own = {
        name: [len(partition.replicas) for partition in topic.partitions.values()]
        for name, topic in found.topics.items()
        if name.startswith(f"{settings.prefix}.") and not topic.error and topic.partitions
    }
    named: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    configured = topics.of(own) if brokers > 1 else {}
    for name, replicas in sorted(own.items()):
        for weakness in _of_topic(min(replicas), configured.get(name, {}), wanted) if brokers > 1 else ():
            named[weakness].append(name)
        if not _of_headrace(settings.prefix, name) and len(replicas) != settings.kafka.partitions:
            named[_partitions(len(replicas), settings.kafka.partitions)].append(name)
    for (problem, remedy), of_them in named.items():
        yield Advice("kafka", problem, tuple(of_them), remedy)


def _of_topic(replicas: int, configuration: Mapping[str, str], wanted: int) -> Iterator[tuple[str, str]]:
    """Yield problem and remedy for each weakness of a topic on several brokers."""
    more = "add replicas with kafka-reassign-partitions.sh"
    if replicas == 1:
        yield "WARNING: topics are on one broker only, and are lost with its disk", more
    elif replicas < wanted:
        yield f"WARNING: topics have {replicas} replicas, and kafka.replication_factor is {wanted}", more
    in_sync = int(configuration.get("min.insync.replicas", _IN_SYNC))
    if in_sync < _IN_SYNC:
        yield (
            f"WARNING: a record is acknowledged once one broker has it (min.insync.replicas={in_sync}), and is lost"
            " with that broker if the others lag",
            _alter(f"min.insync.replicas={_IN_SYNC}"),
        )
    elif 1 < replicas <= in_sync:
        yield (
            f"nothing can be written while one of the topics' {replicas} brokers is down"
            f" (min.insync.replicas={in_sync})",
            more,
        )
    if configuration.get("unclean.leader.election.enable") == "true":
        yield (
            "WARNING: a broker that lacks records may become leader (unclean.leader.election.enable=true), and they"
            " are lost",
            _alter("unclean.leader.election.enable=false"),
        )


def _partitions(there: int, wanted: int) -> tuple[str, str]:
    return (
        f"topics have {there} partitions, and kafka.partitions is {wanted}: existing topics keep theirs,"
        " since a key must stay in its partition",
        f"set kafka.partitions = {there} to match, or keep it for new topics",
    )


def _of_headrace(prefix: str, topic: str) -> bool:
    """Whether a topic holds headrace's own state, in its first partition."""
    return topic in (positions_topic(prefix), schemas_topic(prefix)) or topic.startswith(dead_letters_topic(prefix, ""))


def _alter(setting: str) -> str:
    return f"run kafka-configs.sh --alter --entity-type topics --entity-name NAME --add-config {setting}"
