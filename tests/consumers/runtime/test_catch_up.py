from __future__ import annotations

import pytest

from consumers.ledger.progress import Entry, Place
from consumers.runtime.catch_up import Ends
from consumers.testing.settling import until_shown
from infra.kafka import clients, topics
from infra.settings.model import Settings
from schemas.positions import Offset

pytestmark = pytest.mark.stack


def standing_at(topic: str, offset: int) -> dict[Place, Entry]:
    place = Place(topic, 0)
    return {place: Entry(place, Offset(offset), "id")}


def test_end_includes_transaction_before_broker_shows_its_commit(settings: Settings) -> None:
    topic = f"{settings.prefix}.t"
    topics.ensure_topic(settings.kafka, topic, partitions=1)
    producer = clients.producer(settings.kafka, transactional_id=topic)
    producer.init_transactions(120)
    producer.begin_transaction()
    producer.produce(topic, b"value", key=b"key", partition=0)
    assert producer.flush(120) == 0
    # As a commit that was answered, and whose mark is not yet there.
    ends = Ends(settings.kafka, [topic])
    assert not ends.reached({}, lambda: standing_at(topic, 0))
    producer.commit_transaction(120)
    until_shown(settings.kafka, topic)
    ends = Ends(settings.kafka, [topic])
    assert not ends.reached({}, lambda: standing_at(topic, 1)), "the mark counts too"
    assert Ends(settings.kafka, [topic]).reached({}, lambda: standing_at(topic, 2))


def test_topic_without_events_is_caught_up(settings: Settings) -> None:
    topic = f"{settings.prefix}.t"
    topics.ensure_topic(settings.kafka, topic, partitions=1)
    assert Ends(settings.kafka, [topic]).reached({}, dict)
