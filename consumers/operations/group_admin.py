"""Lists the live consumers of a consumer group in Kafka, and sets the group's offsets."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition

from consumers.ledger.progress import Place
from infra.kafka import clients
from infra.settings.model import KafkaSettings
from schemas.errors import HeadraceError, Refused
from schemas.positions import Offset

_REQUEST_SECONDS: Final = 10.0
_TICK: Final = 0.1


class MembersAlive(Refused):
    """Stop them first; a killed one leaves the group after 10 seconds."""


def members(settings: KafkaSettings, group: str) -> list[str]:
    """Return the names of the group's live consumers, as `host:pid`."""
    return members_of(settings, [group])[group]


def members_of(settings: KafkaSettings, groups: Sequence[str]) -> dict[str, list[str]]:
    """Return group → the names of its live consumers, in one request."""
    deadline = time.monotonic() + _REQUEST_SECONDS
    with clients.translated(settings):
        client = clients.admin(settings)
        found: dict[str, list[str]] = {}
        while left := [group for group in groups if group not in found]:
            futures: dict[str, Any] = client.describe_consumer_groups(left, request_timeout=_REQUEST_SECONDS)
            for group in left:
                try:
                    found[group] = sorted(member.client_id for member in clients.answer(futures[group]).members)
                except KafkaException as error:
                    code = error.args[0].code()
                    if code == KafkaError.GROUP_ID_NOT_FOUND:
                        found[group] = []
                    # A broker that has just started needs a moment to load its groups.
                    elif code not in clients.COORDINATOR_STARTING or time.monotonic() > deadline:
                        raise
            if len(found) < len(groups):
                client.poll(_TICK)
        return found


def move_offsets(settings: KafkaSettings, group: str, offsets: Mapping[Place, Offset]) -> None:
    """Set the group's offsets in Kafka. Raises HeadraceError if it has live consumers."""
    wanted = [TopicPartition(*place, offset) for place, offset in sorted(offsets.items())]
    if not wanted:
        return
    deadline = time.monotonic() + _REQUEST_SECONDS
    while (refusal := _set_offsets(settings, group, wanted)) is not None:
        # A broker that has just started, or never had a group, needs a moment to find the group's coordinator.
        if refusal.code() not in clients.COORDINATOR_STARTING or time.monotonic() > deadline:
            raise HeadraceError(f"cannot set the offsets of group {group}: {refusal.str()}")
        time.sleep(_TICK)


def _set_offsets(settings: KafkaSettings, group: str, wanted: list[TopicPartition]) -> KafkaError | None:
    """Try once; return the broker's error, or None if the offsets were set."""
    with clients.translated(settings):
        client = clients.admin(settings)  # kept: a client that is garbage-collected fails its requests in flight
        futures = client.alter_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group, wanted)], request_timeout=_REQUEST_SECONDS
        )
        try:
            partitions = clients.answer(futures[group]).topic_partitions
        except KafkaException as error:
            if error.args[0].code() in clients.COORDINATOR_STARTING:
                refused: KafkaError = error.args[0]
                return refused
            raise
    errors: list[KafkaError] = [partition.error for partition in partitions if partition.error is not None]
    return errors[0] if errors else None
