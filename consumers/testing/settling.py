"""Waits in tests for a condition, and for what a committed Kafka transaction wrote to be visible in every partition."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # not in its __all__

from infra.kafka import clients
from infra.settings.model import KafkaSettings

PATIENCE = 180.0
"""Seconds until it gives up. The broker itself ends what a producer that died left open, after a minute or so."""
_PASSING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._TIMED_OUT,
    KafkaError._NOENT,
}
"""What is answered about a topic that was just made, or whose broker was suspended: it has no leader yet."""


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` returns something true; an AssertionError says that `what` never happened."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        threading.Event().wait(0.05)


def until_shown(settings: KafkaSettings, *topics: str) -> None:
    """Wait until every reader can read what was produced to these topics up to now. A missing topic has nothing.

    What is still being written meanwhile is not waited for.
    """
    client = clients.admin(settings)
    found = client.list_topics(timeout=PATIENCE).topics
    places = [TopicPartition(topic, number) for topic in topics if topic in found for number in found[topic].partitions]
    if not places:
        return
    deadline = time.monotonic() + PATIENCE
    written = _ends(client, places, IsolationLevel.READ_UNCOMMITTED, deadline)
    while True:
        shown = _ends(client, places, IsolationLevel.READ_COMMITTED, deadline)
        if all(now >= end for now, end in zip(shown, written, strict=True)):
            return
        assert time.monotonic() < deadline, f"a transaction of {', '.join(topics)} never ended"
        threading.Event().wait(0.005)


def _ends(client: AdminClient, places: list[TopicPartition], level: IsolationLevel, deadline: float) -> list[int]:
    latest = {place: OffsetSpec.latest() for place in places}  # type: ignore[no-untyped-call]
    while True:
        answers = client.list_offsets(latest, isolation_level=level)
        try:
            return [answers[place].result().offset for place in places]
        except KafkaException as error:
            if error.args[0].code() not in _PASSING or time.monotonic() > deadline:
                raise
