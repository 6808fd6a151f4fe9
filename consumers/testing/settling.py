"""Waits in tests for a condition, and for what a committed Kafka transaction wrote to be visible in every partition."""

from __future__ import annotations

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # not in its __all__

from consumers.testing.waiting import PATIENCE, until
from infra.kafka import clients
from infra.settings.model import KafkaSettings

_PASSING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._TIMED_OUT,
    KafkaError._NOENT,
}
"""What is answered about a topic that was just made, or whose broker was paused: it has no leader yet."""


def until_shown(settings: KafkaSettings, *topics: str) -> None:
    """Wait until every reader can read what was produced to these topics up to now. A missing topic has nothing.

    What is still being written meanwhile is not waited for.
    """
    client = clients.admin(settings)
    found = client.list_topics(timeout=PATIENCE).topics
    places = [TopicPartition(topic, number) for topic in topics if topic in found for number in found[topic].partitions]
    if not places:
        return
    written = until(lambda: _ends(client, places, IsolationLevel.READ_UNCOMMITTED), "the ends", passing=_NotYet)

    def shown() -> bool:
        ends = _ends(client, places, IsolationLevel.READ_COMMITTED)
        return all(now >= end for now, end in zip(ends, written, strict=True))

    # The broker itself ends what a producer that died left open, after a minute or so.
    until(shown, f"the transactions of {', '.join(topics)} end", passing=_NotYet)


class _NotYet(Exception):
    """The broker cannot answer yet."""


def _ends(client: AdminClient, places: list[TopicPartition], level: IsolationLevel) -> list[int]:
    latest = {place: OffsetSpec.latest() for place in places}  # type: ignore[no-untyped-call]
    answers = client.list_offsets(latest, isolation_level=level)
    try:
        return [answers[place].result().offset for place in places]
    except KafkaException as error:
        if error.args[0].code() in _PASSING:
            raise _NotYet(str(error)) from error
        raise
