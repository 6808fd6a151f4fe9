"""A recreated topic is detected before any of its events can be skipped silently."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from confluent_kafka import TopicPartition

from consumers.delivery.group import Group
from consumers.delivery.topic_identity import TopicIdentity, TopicRecreated, topic_ids
from consumers.ledger.progress import Entry, Place
from consumers.testing.waiting import PATIENCE, until
from infra.kafka import clients, topics
from infra.settings.model import Settings
from infra.stack import Stack
from schemas.positions import Offset
from schemas.topics import group_name
from tests.consumers.conftest import Member
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill, written
from tests.consumers.members.freezing import freeze_between_transactions

pytestmark = pytest.mark.stack

DELETABLE = {"cleanup.policy": "compact,delete"}
"""Records of a compacted topic cannot be deleted by offset."""


def produced(settings: Settings, topic: str, values: range) -> None:
    producer = clients.producer(settings.kafka)
    for value in values:
        producer.produce(topic, key=b"k", value=b"%d" % value, partition=0)
    assert producer.flush(PATIENCE) == 0


def made_again(settings: Settings, topic: str, values: range) -> None:
    topics.delete_topics(settings.kafka, [topic])
    topics.ensure_topic(settings.kafka, topic, partitions=1)
    produced(settings, topic, values)


@pytest.fixture
def topic(settings: Settings) -> str:
    """A topic with one partition of five events."""
    name = f"{settings.prefix}.t"
    topics.ensure_topic(settings.kafka, name, partitions=1, config=DELETABLE)
    produced(settings, name, range(5))
    return name


@pytest.fixture
def group(settings: Settings, topic: str) -> Iterator[Group]:
    """A consumer of the topic whose ledger has the original topic's id."""
    expected = topic_ids(settings.kafka, [topic])[topic]
    made = Group(
        settings.kafka,
        group_name(settings.prefix, "m"),
        assigned=lambda places: {place: Entry(place, Offset(0), expected) for place in places},
        stopping=threading.Event(),
    )
    made.join([topic])
    yield made
    made.close()


@pytest.fixture
def caught_up(group: Group, topic: str) -> Group:
    """The consumer after reading the five events and the end."""
    found: list[Any] = []

    def all_read() -> bool:
        found.extend(group.poll(100, 0.1))
        return len(found) >= 6

    until(all_read, "5 events and the end")
    group.positions[Place(topic, 0)] = Offset(5)
    return group


def refused(group: Group) -> list[bytes | None]:
    """Poll until the topic is refused; return the values returned before."""
    found: list[bytes | None] = []

    errors: list[TopicRecreated] = []

    def raised() -> bool:
        try:
            found.extend(record.value() for record in group.poll(100, 0.05) if record.error() is None)
        except TopicRecreated as error:
            errors.append(error)
        return bool(errors)

    until(raised, "it is refused")
    assert "headrace replay" in str(errors[0])
    assert errors[0].exit_code == 3
    return found


def test_topic_recreated_during_pause_is_refused_before_reading(
    caught_up: Group, settings: Settings, topic: str
) -> None:
    done = False

    def still() -> bool:
        nonlocal done
        if not done:
            made_again(settings, topic, range(100, 120))
            done = True
            return True
        return False

    caught_up.wait(0.05, still=still)
    assert refused(caught_up) == []


def test_topic_recreated_without_polls_is_refused_before_reading(
    caught_up: Group, settings: Settings, topic: str
) -> None:
    started = caught_up._polled
    made_again(settings, topic, range(100, 120))
    while caught_up._polled == started and not threading.Event().wait(0.05):
        # As if it had been frozen that long, however fast the test was.
        caught_up._polled -= 10.0
    assert refused(caught_up) == []


def test_topic_recreated_between_polls_is_refused_soon(caught_up: Group, settings: Settings, topic: str) -> None:
    remaking = threading.Thread(target=made_again, args=(settings, topic, range(100, 120)))
    remaking.start()
    refused(caught_up)
    remaking.join(PATIENCE)


def test_recreated_topic_is_detected_in_background(settings: Settings, topic: str) -> None:
    identity = TopicIdentity(settings.kafka, threading.Event())
    entry = Entry(Place(topic, 0), Offset(5), topic_ids(settings.kafka, [topic])[topic])
    identity.expect([entry])
    assert identity.confirm()
    identity.look()
    made_again(settings, topic, range(100, 120))
    errors: list[TopicRecreated] = []

    def noticed() -> bool:
        try:
            identity.look()
        except TopicRecreated as error:
            errors.append(error)
        return bool(errors)

    until(noticed, "the background request detects the new topic")
    assert f"{topic} was deleted and recreated: the ledger has topic id {entry.topic_id}" in str(errors[0])
    identity.keep_only([])
    identity.look()
    assert identity.confirm(), "without topics"


def test_recreated_topic_is_never_reported_as_caught_up(caught_up: Group, settings: Settings, topic: str) -> None:
    assert caught_up.confirm()
    made_again(settings, topic, range(100, 120))
    with pytest.raises(TopicRecreated):
        caught_up.confirm()


def test_records_deleted_past_position_during_pause_are_refused(
    caught_up: Group, settings: Settings, topic: str
) -> None:
    caught_up.set_aside(Place(topic, 0), Offset(2))
    produced(settings, topic, range(5, 20))
    admin = clients.admin(settings.kafka)
    for future in admin.delete_records([TopicPartition(topic, 0, 12)]).values():
        future.result(PATIENCE)
    caught_up.bring_back(Place(topic, 0))
    found: list[bytes | None] = []

    def raised() -> bool:
        try:
            found.extend(record.value() for record in caught_up.poll(100, 0.05) if record.error() is None)
        except TopicRecreated:
            return True
        return False

    until(raised, "it is refused")
    assert found == []


def test_unconfirmed_records_are_read_again_once_confirmed(
    caught_up: Group, settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, False])
    asked = TopicIdentity.confirm
    monkeypatch.setattr(TopicIdentity, "confirm", lambda self: next(answers, None) is None and asked(self))
    assert caught_up.wait(0.01)
    produced(settings, topic, range(5, 20))
    found: list[bytes | None] = []

    def all_read() -> bool:
        found.extend(record.value() for record in caught_up.poll(100, 0.1) if record.error() is None)
        return len(found) >= 15

    until(all_read, "all events from the time without an answer")
    assert found == [b"%d" % value for value in range(5, 20)]
    assert caught_up.aside == set()


@pytest.mark.long
def test_unavailable_broker_confirms_nothing_and_is_retried(
    stack: Stack, caught_up: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.delivery.topic_identity._REQUEST_SECONDS", 1.0)
    stack.kafka.stop()
    try:
        assert not caught_up.confirm()
    finally:
        stack.kafka.start()
    until(caught_up.confirm, "it is confirmed")


ROWS = dict.fromkeys(range(400), TOO_MANY_TAGS)


@pytest.mark.long
def test_frozen_consumer_with_recreated_topic_stops_and_restart_is_refused(
    feed: Feed,
    settings: Settings,
    connection: psycopg.Connection[Any],
    members: Callable[..., Member],
) -> None:
    fill(connection, ROWS)
    feed.snapshot(ROWS)
    member = members()
    until(lambda: len(written(connection)) == len(ROWS), "it is done")
    freeze_between_transactions(member, connection)
    # All rows need it again, as after a producer starts over; the new topic soon has more events than the old one.
    connection.execute(
        "UPDATE container_repositories SET migration_state = 'import_skipped', migration_skipped_reason = 2"
    )
    topics.delete_topics(settings.kafka, [feed.topic])
    topics.ensure_topic(settings.kafka, feed.topic, partitions=feed.partitions)
    for _ in range(3):
        feed.snapshot(ROWS)
    member.send_signal(signal.SIGCONT)
    _, said = member.communicate(timeout=PATIENCE)
    assert member.returncode == 3, said
    assert "was deleted and recreated" in said
    assert "headrace replay" in said
    again = members()
    _, said = again.communicate(timeout=PATIENCE)
    assert again.returncode == 3, said
    assert "was deleted and recreated" in said
