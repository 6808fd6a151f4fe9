"""What of Kafka lets events be lost with one broker: too few brokers, replicas, or replicas that must have a record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from infra.cli.advice import Advice
from infra.kafka import clients
from infra.kafka.topics import configurations
from infra.settings.model import Settings
from schemas.topics import parked_topic, positions_topic, schemas_topic

_TIMEOUT: Final = 30.0
_IN_SYNC: Final = 2
"""The fewest replicas that must have a record before it counts as written."""

_ONE_BROKER: Final = (
    "Kafka has one broker: what its disk loses is lost, and while it is away nothing is read or written",
    "run three or more, with default.replication.factor=3 and min.insync.replicas=2 (docs/running.md)",
)


def weaknesses(settings: Settings) -> Iterator[Advice]:
    """Yield what could lose events, or stops them, when a broker dies; of topics, those that begin with the prefix.

    Of what may not be read nothing is said. Raises BrokerUnavailable.
    """
    with clients.translated(settings.kafka):
        found = clients.admin(settings.kafka).list_topics(timeout=_TIMEOUT)
    brokers, wanted = len(found.brokers), settings.kafka.replication_factor
    if brokers == 1:
        yield Advice("kafka", f"WARNING: {_ONE_BROKER[0]}", (), _ONE_BROKER[1])
    elif brokers < wanted:
        yield Advice(
            "kafka",
            f"WARNING: kafka.replication_factor is {wanted}, and {brokers} brokers are in service: a topic that is"
            " still to be made is waited for",
            (),
            "bring the others back, or lower it",
        )
    own = {
        name: [len(partition.replicas) for partition in topic.partitions.values()]
        for name, topic in found.topics.items()
        if name.startswith(f"{settings.prefix}.") and not topic.error and topic.partitions
    }
    named: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    configured = configurations(settings.kafka, own)
    for name, replicas in sorted(own.items()):
        for weakness in _of_topic(min(replicas), configured.get(name, {}), wanted) if brokers > 1 else ():
            named[weakness].append(name)
        if not _of_headrace(settings.prefix, name) and len(replicas) != settings.kafka.partitions:
            named[_partitions(len(replicas), settings.kafka.partitions)].append(name)
    for (problem, remedy), topics in named.items():
        yield Advice("kafka", problem, tuple(topics), remedy)


def _of_topic(replicas: int, configuration: Mapping[str, str], wanted: int) -> Iterator[tuple[str, str]]:
    """Yield problem and remedy for what a topic lacks of a Kafka of several brokers."""
    more = "give them more with kafka-reassign-partitions.sh"
    if replicas == 1:
        yield "WARNING: topics are on one broker only, and lost with its disk", more
    elif replicas < wanted:
        yield f"WARNING: topics have {replicas} replicas, and kafka.replication_factor is {wanted}", more
    in_sync = int(configuration.get("min.insync.replicas", _IN_SYNC))
    if in_sync < _IN_SYNC:
        yield (
            f"WARNING: records count as written when one broker has them (min.insync.replicas={in_sync}), and are lost"
            " with it if the others were behind",
            _alter(f"min.insync.replicas={_IN_SYNC}"),
        )
    elif 1 < replicas <= in_sync:
        yield (
            f"nothing can be written as soon as one of the topics' {replicas} brokers is away"
            f" (min.insync.replicas={in_sync})",
            more,
        )
    if configuration.get("unclean.leader.election.enable") == "true":
        yield (
            "WARNING: a broker that lacks records may become the leader (unclean.leader.election.enable=true), and they"
            " are lost",
            _alter("unclean.leader.election.enable=false"),
        )


def _partitions(there: int, wanted: int) -> tuple[str, str]:
    return (
        f"topics have {there} partitions, and kafka.partitions is {wanted}: they keep what they have, since a key stays"
        " in its partition",
        f"set kafka.partitions = {there} to say so, or leave it for topics that are still to be made",
    )


def _of_headrace(prefix: str, topic: str) -> bool:
    """Whether a topic has headrace's own state, in its first partition, however many it has."""
    return topic in (positions_topic(prefix), schemas_topic(prefix)) or topic.startswith(parked_topic(prefix, ""))


def _alter(setting: str) -> str:
    return f"run kafka-configs.sh --alter --entity-type topics --entity-name NAME --add-config {setting}"
