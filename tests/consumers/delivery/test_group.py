"""A group member reads from the ledger's offsets, and keeps its partitions while waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Message, TopicPartition

from consumers.delivery.group import Group
from consumers.delivery.topic_identity import TopicRecreated, topic_ids
from consumers.ledger.progress import Entry, Place
from consumers.operations.group_admin import members, move_offsets
from consumers.testing.waiting import PATIENCE, until
from infra.kafka import clients, topics
from infra.settings.model import Settings
from schemas.errors import HeadraceError
from schemas.positions import Offset
from schemas.topics import group_name

pytestmark = pytest.mark.stack

Join = Callable[..., Group]


class Ledger:
    """Returns the position of each partition; the beginning by default."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.ids: dict[str, str] = {}
        self.offsets: dict[Place, int] = {}

    def __call__(self, places: Sequence[Place]) -> Mapping[Place, Entry]:
        new = {place.topic for place in places} - self.ids.keys()
        self.ids |= topic_ids(self._settings.kafka, sorted(new)) if new else {}
        return {place: Entry(place, Offset(self.offsets.get(place, 0)), self.ids[place.topic]) for place in places}


@pytest.fixture
def topic(settings: Settings) -> str:
    """A topic with two partitions of five events each."""
    name = f"{settings.prefix}.t"
    topics.ensure_topic(settings.kafka, name, partitions=2, config=DELETABLE)
    producer = clients.producer(settings.kafka)
    for number in range(10):
        producer.produce(name, key=b"k", value=b"%d" % number, partition=number % 2)
    assert producer.flush(PATIENCE) == 0
    return name


@pytest.fixture
def ledger(settings: Settings) -> Ledger:
    return Ledger(settings)


@pytest.fixture
def join(settings: Settings, topic: str, ledger: Ledger) -> Iterator[Join]:
    """A function that creates a group member for the topic."""
    made: list[Group] = []

    def member(stopping: threading.Event | None = None, **options: float) -> Group:
        group = Group(
            settings.kafka,
            group_name(settings.prefix, "m"),
            assigned=ledger,
            stopping=stopping or threading.Event(),
            **options,
        )
        made.append(group)
        group.join([topic])
        return group

    yield member
    for group in made:
        group.close()


DELETABLE = {"cleanup.policy": "compact,delete"}
"""Records of a compacted topic cannot be deleted by offset."""


def values(records: Sequence[Message]) -> list[int]:
    return sorted(int(record.value() or b"") for record in records if record.error() is None)


def read(group: Group, count: int) -> list[int]:
    """Return `count` events."""
    found: list[int] = []

    def enough() -> bool:
        found.extend(values(group.poll(100, 0.1)))
        return len(found) >= count

    until(enough, f"{count} events arrive")
    return sorted(found)


def test_reading_starts_at_ledger_offset_not_committed_offset(
    join: Join, settings: Settings, topic: str, ledger: Ledger
) -> None:
    move_offsets(settings.kafka, group_name(settings.prefix, "m"), {Place(topic, 0): Offset(5)})
    ledger.offsets = {Place(topic, 1): 3}
    group = join()
    assert read(group, 7) == [0, 2, 4, 6, 7, 8, 9]
    assert group.positions == {Place(topic, 0): 0, Place(topic, 1): 3}


def test_waiting_group_member_reads_nothing_and_stays(join: Join, settings: Settings, topic: str) -> None:
    group = join()
    # Until the ends of both partitions, which arrive like events, and a little later.
    received: list[Message] = []

    def all_received() -> bool:
        received.extend(group.poll(100, 0.1))
        return len(values(received)) == 10 and len(received) == 12

    until(all_received, "10 events and 2 ends")
    asked = []

    def still() -> bool:
        asked.append(members(settings.kafka, group_name(settings.prefix, "m")))
        return len(asked) < 2

    assert group.wait(0.1, still=still)
    assert [len(alive) for alive in asked] == [1, 1]


def test_records_not_applied_arrive_again(join: Join, topic: str, ledger: Ledger) -> None:
    group = join()
    read(group, 10)
    ledger.offsets = {Place(topic, 0): 4, Place(topic, 1): 5}
    assert group.reposition(ledger(list(group.positions)))
    assert read(group, 1) == [8]
    assert group.positions == {Place(topic, 0): 4, Place(topic, 1): 5}


def test_two_group_members_share_partitions_and_one_takes_over(join: Join, topic: str) -> None:
    first, second = join(), join()

    def shared() -> bool:
        for group in (first, second):
            group.poll(100, 0.05)
        return len(first.positions) == len(second.positions) == 1

    until(shared, "each has a partition")
    assert first.positions.keys() | second.positions.keys() == {Place(topic, 0), Place(topic, 1)}
    second.close()

    def alone() -> bool:
        first.poll(100, 0.05)
        return len(first.positions) == 2

    until(alone, "the first has both")


@pytest.mark.long
def test_partition_revoked_while_waiting_is_read_when_reassigned(
    join: Join, settings: Settings, topic: str, ledger: Ledger
) -> None:
    first = join()
    read(first, 10)
    second = join()

    def alone() -> bool:
        second.poll(100, 0.05)
        return len(first.positions) == 2

    assert not first.wait(0.05, still=alone), "its partitions changed"
    second.close()

    def both() -> bool:
        first.poll(100, 0.05)
        return len(first.positions) == 2

    until(both, "the first has both again")
    ledger.offsets = {Place(topic, 0): 5, Place(topic, 1): 5}
    assert first.reposition(ledger(list(first.positions)))
    produced(settings, topic, [10, 11])
    assert read(first, 2) == [10, 11]


def produced(settings: Settings, topic: str, numbers: Sequence[int]) -> None:
    """Write numbered events, the even ones into partition 0."""
    producer = clients.producer(settings.kafka)
    for number in numbers:
        producer.produce(topic, key=b"k", value=b"%d" % number, partition=number % 2)
    assert producer.flush(PATIENCE) == 0


def test_partition_set_aside_is_read_after_bring_back_and_others_continue(
    join: Join, settings: Settings, topic: str, ledger: Ledger
) -> None:
    group = join()
    read(group, 10)
    even = Place(topic, 0)
    group.set_aside(even, Offset(2))
    assert group.positions[even] == 2
    produced(settings, topic, range(10, 30))
    assert read(group, 10) == list(range(11, 30, 2)), "from the other partition"
    assert group.wait(0.05)
    assert group.rest(0.01)
    produced(settings, topic, range(30, 40))
    assert read(group, 5) == list(range(31, 40, 2)), "as before, after waiting"
    ledger.offsets = {even: 3, Place(topic, 1): 20}
    assert group.reposition(ledger(list(group.positions)))
    produced(settings, topic, range(40, 50))
    assert read(group, 5) == list(range(41, 50, 2)), "as before, after repositioning"
    group.bring_back(even)
    assert read(group, 22) == list(range(6, 50, 2)), "every one from there, once"
    produced(settings, topic, [50, 51])
    group.bring_back(even)
    assert read(group, 2) == [50, 51], "the second call does nothing"


def test_prefetched_partition_set_aside_arrives_neither_early_nor_twice(
    join: Join, settings: Settings, topic: str
) -> None:
    produced(settings, topic, range(10, 2_000))
    group = join()
    first: list[Message] = []

    def some_of_both() -> bool:
        first.extend(group.poll(5, 0.1))
        return {record.partition() for record in first} == {0, 1}

    until(some_of_both, "events of both partitions")
    group.set_aside(Place(topic, 0), Offset(0))
    odd = values([record for record in first if record.partition() == 1])
    rest = read(group, 1_000 - len(odd))
    assert sorted(odd + rest) == list(range(1, 2_000, 2))
    group.bring_back(Place(topic, 0))
    assert read(group, 1_000) == list(range(0, 2_000, 2))


@pytest.mark.long
def test_partition_set_aside_survives_rebalance_of_another_partition(
    join: Join, settings: Settings, topic: str, ledger: Ledger
) -> None:
    first = join()
    read(first, 10)
    for place in (Place(topic, 0), Place(topic, 1)):
        first.set_aside(place, Offset(3))
    ledger.offsets = {Place(topic, 0): 3, Place(topic, 1): 3}
    second = join()
    found: list[Message] = []

    def shared() -> bool:
        assert values(first.poll(100, 0.05)) == []
        found.extend(second.poll(100, 0.05))
        return len(first.positions) == len(second.positions) == 1 and len(values(found)) == 2

    until(shared, "the second reads its partition from the ledger's offset")
    kept = next(iter(first.positions))
    second.close()

    def both() -> bool:
        found.extend(first.poll(100, 0.05))
        return len(first.positions) == 2 and len(values(found)) == 4

    until(both, "the reassigned one is read")
    assert {record.partition() for record in found} == {1 - kept.partition}
    first.bring_back(kept)
    assert read(first, 2) == [6 + kept.partition, 8 + kept.partition]


def test_partitions_revoked_during_reposition_are_not_sought(join: Join, topic: str, ledger: Ledger) -> None:
    stopping = threading.Event()
    first = join(stopping)
    read(first, 10)
    entries = ledger(list(first.positions))
    second = join()

    def shared() -> bool:
        for group in (first, second):
            group.poll(100, 0.05)
        # Assigned, revoked, and an assignment of nothing: no further rebalance follows.
        return first._generation >= 3 and len(first.positions) == len(second.positions) == 1

    until(shared, "each has a partition")
    gives_up = threading.Timer(20.0, stopping.set)
    gives_up.start()
    assert not first.reposition(entries)
    assert not stopping.is_set()
    gives_up.cancel()
    assert first.reposition(ledger(list(first.positions)))
    assert len(read(first, 5)) == 5


@pytest.mark.long
def test_partition_that_cannot_be_sought_is_logged_and_retried(
    join: Join,
    topic: str,
    ledger: Ledger,
    capsys: pytest.CaptureFixture[str],
) -> None:
    group = join(stall_seconds=0.0)
    read(group, 10)
    one = TopicPartition(topic, 1, 0)
    group._consumer.incremental_unassign([one])
    moved = threading.Thread(target=lambda: group.reposition(ledger(list(group.positions))), daemon=True)
    moved.start()
    until(lambda: "partition cannot be read" in capsys.readouterr().out, "it is logged")
    assert moved.is_alive()
    group._consumer.incremental_assign([one])
    moved.join(PATIENCE)
    assert not moved.is_alive()
    assert read(group, 10) == list(range(10))


def test_partition_without_its_first_events_is_logged(
    join: Join, settings: Settings, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    admin = clients.admin(settings.kafka)
    for future in admin.delete_records([TopicPartition(topic, 0, 3)]).values():
        future.result(PATIENCE)
    assert read(join(), 7) == [1, 3, 5, 6, 7, 8, 9]
    assert "topic no longer has its first events" in capsys.readouterr().out


def test_committed_offsets_follow_positions(join: Join, settings: Settings, topic: str) -> None:
    group = join()
    read(group, 10)
    group.positions[Place(topic, 0)] = Offset(4)
    group.commit()
    name = group_name(settings.prefix, "m")
    admin = clients.admin(settings.kafka)

    def followed() -> bool:
        group.poll(1, 0.05)
        found = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(name)])[name].result(PATIENCE)
        return [each.offset for each in found.topic_partitions if each.partition == 0] == [4]

    until(followed, "the offset is there")


def test_offsets_cannot_be_moved_while_group_is_active(join: Join, settings: Settings, topic: str) -> None:
    read(join(), 10)
    with pytest.raises(HeadraceError):
        move_offsets(settings.kafka, group_name(settings.prefix, "m"), {Place(topic, 0): Offset(0)})


def test_ledger_past_the_end_is_refused(join: Join, topic: str, ledger: Ledger) -> None:
    ledger.offsets = {Place(topic, 0): 6}
    with pytest.raises(TopicRecreated, match="ends at offset 5, but the ledger is at 6"):
        read(join(), 10)


def test_missing_topics_are_returned(join: Join, topic: str) -> None:
    assert join().missing([topic, "absent"]) == ["absent"]


def test_unknown_group_is_empty(settings: Settings, topic: str) -> None:
    assert members(settings.kafka, "never") == []
