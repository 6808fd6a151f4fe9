"""Creates, inspects and deletes topics, and reads small compacted ones from beginning to end."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec, TopicMetadata  # type: ignore[attr-defined]  # exported, but not by name

from infra.kafka import clients
from infra.kafka.denials import DENIALS
from infra.settings.model import KafkaSettings
from schemas.errors import BrokerUnavailable, HeadraceError
from schemas.lazy_dataclass import dataclass

COMPACTED: Mapping[str, str] = {"cleanup.policy": "compact"}
"""For a topic that is a whole table: the last record of each key stays."""

STATE: Mapping[str, str] = {
    **COMPACTED,
    "segment.ms": "600000",
    "segment.bytes": "4194304",
    "min.cleanable.dirty.ratio": "0.1",
}
"""For a topic of state, which every start reads from the beginning: compacted early."""

ONLY_PARTITION = 0
"""The partition of headrace's own state: always explicit, since a topic created in advance may have more."""

_TIMEOUT = 30.0
BATCH_BYTES = 1_000
"""More than the overhead of a batch with one record."""

SETTLING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._NOENT,
}
"""Temporary errors of a broker that is taking over a partition."""


def ensure_topic(
    settings: KafkaSettings,
    name: str,
    *,
    partitions: int | None = None,
    config: Mapping[str, str] = COMPACTED,
) -> int:
    """Create topic `name` unless it exists, and return its number of partitions. See `ensure_topics`."""
    return ensure_topics(settings, [name], partitions=partitions, config=config).partitions[name]


@dataclass(frozen=True)
class Ensured:
    """Topics that exist now: topic → number of partitions, and those of them that this call created."""

    partitions: Mapping[str, int]
    created: frozenset[str]


def ensure_topics(
    settings: KafkaSettings,
    names: Sequence[str],
    *,
    partitions: int | None = None,
    config: Mapping[str, str] = COMPACTED,
) -> Ensured:
    """Create the missing topics in one request.

    An existing topic keeps its partitions: a key must stay in its partition. A new one accepts records of the size that
    clients send (`clients.record_bytes`), unless `config` overrides it.
    """
    with clients.translated(settings):
        client = clients.admin(settings)
        wanted = partitions or settings.partitions
        counts = {name: len(found.partitions) for name, found in _existing(client, names).items()}
        limits = {"max.message.bytes": str(clients.record_bytes(settings) + BATCH_BYTES), **config}
        new = [
            NewTopic(name, num_partitions=wanted, replication_factor=settings.replication_factor, config=limits)
            for name in names
            if name not in counts
        ]
        made = client.create_topics(new, operation_timeout=_TIMEOUT) if new else {}
        expected = dict.fromkeys(made, wanted)
        created = set(made)
        for name, future in made.items():
            try:
                future.result(_TIMEOUT)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
                expected[name] = 1  # another process created it
                created.remove(name)
        # Other brokers learn of a new topic later than the controller, and answer that it does not exist.
        started = time.monotonic()
        while left := made.keys() - counts.keys():
            counts |= {name: led for name, led in _led_partitions(client, left).items() if led >= expected[name]}
            if (waited := time.monotonic() - started) > _TIMEOUT:
                raise BrokerUnavailable(f"topic {min(left)} has no leader {_TIMEOUT:.0f} s after its creation")
            # A broker that is creating thousands of partitions has better things to do than to answer.
            time.sleep(min(0.2, 0.01 + waited / 10))
        return Ensured({name: counts[name] or wanted for name in names}, frozenset(created))


def _existing(client: AdminClient, names: Collection[str]) -> dict[str, TopicMetadata]:
    """Return the existing topics; raises KafkaException for one that this client may not describe.

    Kafka's list of all topics silently omits such a topic: it is requested by name.
    """
    listed = client.list_topics(timeout=_TIMEOUT).topics
    found = {name: listed[name] for name in names if name in listed and not listed[name].error}
    if unlisted := [name for name in names if name not in found]:
        answers = client.describe_topics(TopicCollection(unlisted), request_timeout=_TIMEOUT)
        for error in [future.exception(_TIMEOUT) for future in answers.values()]:
            if isinstance(error, KafkaException) and error.args[0].code() in DENIALS:
                raise error
    return found


def is_there(found: TopicMetadata | None) -> bool:
    """Return whether a topic requested by name exists; raises KafkaException if this client may not describe it."""
    if found is not None and found.error is not None and found.error.code() in DENIALS:
        raise KafkaException(found.error)
    return found is not None and found.error is None


def _led_partitions(client: AdminClient, names: Collection[str]) -> dict[str, int]:
    """Return topic → number of partitions, of those that exist and whose partitions all have a leader."""
    answers = client.describe_topics(TopicCollection(list(names)), request_timeout=_TIMEOUT)
    found: dict[str, int] = {}
    for name, future in answers.items():
        try:
            partitions = future.result(_TIMEOUT).partitions
        except KafkaException as error:
            if error.args[0].code() not in SETTLING:
                raise
        else:
            if all(partition.leader is not None for partition in partitions):
                found[name] = len(partitions)
    return found


def partition_counts(settings: KafkaSettings) -> dict[str, int]:
    """Return topic → current number of partitions, for all topics that this client may describe."""
    with clients.translated(settings):
        found = clients.admin(settings).list_topics(timeout=_TIMEOUT).topics
        return {name: len(topic.partitions) for name, topic in found.items() if not topic.error}


def delete_topics(settings: KafkaSettings, names: Sequence[str]) -> None:
    """Delete the existing topics, and return once the broker lists none of them."""
    with clients.translated(settings):
        client = clients.admin(settings)
        there = list(_existing(client, names))
        if not there:
            return
        for future in client.delete_topics(there, operation_timeout=_TIMEOUT).values():
            try:
                future.result(_TIMEOUT)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
        deadline = time.monotonic() + _TIMEOUT
        while left := set(there) & client.list_topics(timeout=_TIMEOUT).topics.keys():
            if time.monotonic() > deadline:
                raise HeadraceError(
                    f"Kafka still lists {sorted(left)[0]} {_TIMEOUT:.0f} s after it was deleted",
                    remedy="stop the process that recreates it, then try again",
                )
            time.sleep(0.05)


def end_offsets(settings: KafkaSettings, topic: str) -> dict[int, int]:
    """Return partition → offset after the last committed record; empty if the topic does not exist."""
    return _end_offsets(settings, topic, "read_committed")


def with_records(settings: KafkaSettings, topics: Collection[str]) -> frozenset[str]:
    """Return the topics that have ever had a committed record, in one request."""
    found = end_offsets_of(settings, topics)
    return frozenset(topic for topic, ends in found.items() if any(end > 0 for end in ends.values()))


def end_offsets_of(settings: KafkaSettings, topics: Collection[str]) -> dict[str, dict[int, int]]:
    """Return topic → partition → offset after the last committed record, of those that exist, in one request."""
    with clients.translated(settings):
        client = clients.admin(settings)
        found = _existing(client, topics)
        places = [TopicPartition(topic, number) for topic in found for number in found[topic].partitions]
        if not places:
            return {}
        latest = {place: OffsetSpec.latest() for place in places}  # type: ignore[no-untyped-call]
        deadline = time.monotonic() + _TIMEOUT
        while True:
            answers = client.list_offsets(latest, isolation_level=IsolationLevel.READ_COMMITTED)
            try:
                ends: dict[str, dict[int, int]] = {}
                for place in places:
                    ends.setdefault(place.topic, {})[place.partition] = int(answers[place].result(_TIMEOUT).offset)
                return ends
            except KafkaException as error:
                if error.args[0].code() not in SETTLING or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)


def written_offsets(settings: KafkaSettings, topic: str) -> dict[int, int]:
    """Return partition → offset after the last record, including those of uncommitted transactions.

    A commit returns a moment before every partition shows it. So a record known to be committed, since a record of the
    same transaction was read elsewhere, may come after `end_offsets`, but never after these.
    """
    return _end_offsets(settings, topic, "read_uncommitted")


def first_offsets(settings: KafkaSettings, topic: str) -> dict[int, int]:
    """Return partition → offset of the first record; empty if the topic does not exist."""
    return _watermarks(settings, topic, "read_uncommitted", 0)


def shows_all(settings: KafkaSettings, topic: str) -> bool:
    """Whether readers see all that was written, with no transaction that is open or committed a moment ago."""
    return written_offsets(settings, topic) == end_offsets(settings, topic)


def _end_offsets(settings: KafkaSettings, topic: str, isolation_level: str) -> dict[int, int]:
    return _watermarks(settings, topic, isolation_level, 1)


def _watermarks(settings: KafkaSettings, topic: str, isolation_level: str, which: int) -> dict[int, int]:
    with clients.reading(settings, isolation_level=isolation_level) as client:
        found = client.list_topics(topic, timeout=_TIMEOUT).topics.get(topic)
        partitions = sorted(found.partitions) if found is not None and is_there(found) else []
        return {partition: _watermark(client, TopicPartition(topic, partition), which) for partition in partitions}


def _watermark(client: Consumer, place: TopicPartition, which: int) -> int:
    deadline = time.monotonic() + _TIMEOUT
    while True:
        try:
            return int(client.get_watermark_offsets(place, timeout=_TIMEOUT)[which])
        except KafkaException as error:
            if error.args[0].code() not in SETTLING or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


class LogReader:
    """Reads the first partition of a topic repeatedly, each time from where it stopped to the current end.

    Used for the topics of headrace's own state, which is always in ONLY_PARTITION, so that its order holds however many
    partitions the topic has. A topic that does not exist reads as empty.
    """

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._next = OFFSET_BEGINNING

    def read(self) -> Iterator[Message]:
        """Yield every committed record after the last one read, up to the current end."""
        # At the end of the partition a broker waits this long, half a second by default.
        options = {"enable_partition_eof": True, "fetch_wait_max_ms": 10}
        with clients.reading(self._settings, **options) as client:
            deadline = time.monotonic() + _TIMEOUT
            if not self._assigned(client):
                return
            while True:
                # One by one: `consume` waits for the requested number, and the end is not known in advance.
                message = client.poll(_TIMEOUT)
                if message is None:
                    raise TimeoutError(f"topic {self._topic} could not be read to its end")
                error = message.error()
                if error is None:
                    self._next = (message.offset() or 0) + 1
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    return
                elif error.code() not in SETTLING or time.monotonic() > deadline:
                    raise KafkaException(error)
                else:
                    # One broker knows the topic, its leader not yet, or no longer.
                    time.sleep(0.05)
                    if not self._assigned(client):
                        return

    def _assigned(self, client: Consumer) -> bool:
        """Assign the partition at the next offset; return whether the topic exists, raise KafkaException if it is
        hidden."""
        found = client.list_topics(self._topic, timeout=_TIMEOUT).topics.get(self._topic)
        if not is_there(found):
            return False
        client.assign([TopicPartition(self._topic, ONLY_PARTITION, self._next)])
        return True
