"""Reads the last event of every key of a table's topic, without a consumer group and without side effects."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumers.compare import marks
from infra.kafka import clients, topics
from infra.settings.model import KafkaSettings
from schemas.codec.header import HeaderReader
from schemas.errors import Malformed
from schemas.wire import HEADER_BYTES, split_wire

_AT_ONCE: Final = 5_000
_TIMEOUT: Final = 30.0
_FAR: Final = 50_000
"""How many records are rather read than skipped."""
_MOST_KNOWN: Final = 15
_GONE: Final = frozenset(b"dt")

Ends = Mapping[int, int]
"""Partition → the offset after its last record."""


@dataclass(frozen=True, slots=True)
class Latest:
    """The last record of a key; no `value` for a tombstone."""

    partition: int
    offset: int
    value: bytes | None


class TopicRows:
    """One table's topic. Keys are given as message keys without the schema's id, which may change."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic

    def ends(self) -> dict[int, int]:
        """Return the current ends of the partitions, records included that are committed but not readable yet."""
        return topics.written_offsets(self._settings, self._topic)

    def begins(self) -> dict[int, int]:
        """Return the first offsets of the partitions."""
        return topics.first_offsets(self._settings, self._topic)

    def marks(
        self, reached: dict[int, int], ends: Ends, comparable: Callable[[int], bool], secret: bytes
    ) -> Iterator[tuple[bytes, list[Message]]]:
        """Yield the marks of the records from `reached` to `ends`, and their truncates, a batch at a time.

        `reached`, which may be empty, is then at the offsets after the batch. `comparable` says of a schema's id
        whether its rows have the table's fields. A truncate has no mark: see `latest`.
        """
        known: marks.Known = []
        read = HeaderReader()

        def learn(value: bytes) -> None:
            try:
                prefix = read.prefix(value)
                start = prefix.data[: prefix.table_end], comparable(split_wire(value)[0])
            except (Malformed, KeyError, ValueError):
                return
            known[_MOST_KNOWN:] = []
            known.insert(0, start)

        wanted = dict(ends)
        with self._reader() as client:
            left = {partition for partition, end in wanted.items() if reached.get(partition, 0) < end}
            starts = {partition: reached.get(partition, OFFSET_BEGINNING) for partition in left}
            clients.assign(
                client, [TopicPartition(self._topic, partition, start) for partition, start in starts.items()]
            )
            while left:
                made, others = marks.topic_marks(self._batch(client), wanted, reached, known, learn, secret)
                for record in others:
                    if record.error() is not None and self._is_end(record):
                        self._note_end(record, reached, wanted)
                left = {partition for partition in left if reached.get(partition, 0) < wanted[partition]}
                yield made, [record for record in others if record.error() is None and _is_truncate(record)]

    def places(
        self, hashes: Collection[int], ends: Ends, secret: bytes, stopped: Callable[[], object]
    ) -> dict[int, int]:
        """Return the places of the last records of keys, by their hashes, before `ends`."""
        found: dict[int, int] = {}
        for made, _ in self.marks({}, ends, lambda _: False, secret):
            stopped()
            found.update((key, place) for key, _, place in marks.MARK.iter_unpack(made) if key in hashes)
        return found

    def at(self, places: Collection[int]) -> Iterator[tuple[int, bytes, Latest]]:
        """Yield the records at `places` that are still there, each with its place and its key."""
        by_partition: dict[int, deque[int]] = {}
        for place in sorted(places):
            offsets = by_partition.setdefault(place >> marks.PARTITION_BITS, deque())
            offsets.append(place & ((1 << marks.PARTITION_BITS) - 1))
        with self._reader() as client:
            for partition, wanted in by_partition.items():
                for offset, record in self._skipping(client, partition, wanted):
                    key, value = bytes(record.key() or b"")[HEADER_BYTES:], record.value()
                    latest = Latest(partition, offset, None if value is None else bytes(value))
                    yield partition << marks.PARTITION_BITS | offset, key, latest

    def _skipping(self, client: Consumer, partition: int, wanted: deque[int]) -> Iterator[tuple[int, Message]]:
        """Yield the records of a partition at the offsets `wanted`, which are used up."""
        position: int | None = None
        while wanted:
            if position is None or wanted[0] > position + _FAR:
                position = wanted[0]
                clients.assign(client, [TopicPartition(self._topic, partition, position)])
            for record in self._batch(client):
                if record.partition() != partition:
                    continue  # left in the queue by the partition before
                if self._is_end(record):
                    wanted.clear()
                    break
                position = max(position, int(record.offset() or 0))
                while wanted and wanted[0] < position:
                    wanted.popleft()  # compacted away
                if wanted and wanted[0] == position:
                    wanted.popleft()
                    yield position, record

    def latest(
        self, start: Ends, ends: Ends, known: Mapping[bytes, Latest | None], most: int
    ) -> tuple[dict[bytes, Latest], set[bytes], list[bytes]]:
        """Return the last records of the keys of `known`, the keys left out, and the records of truncates.

        `known` has the last records before `start`; what is returned is of records from there to `ends` else. Keys are
        left out if the values exceed `most` bytes; one value is always returned. A delete's event is returned instead
        of the tombstone after it, since it has a position.
        """
        found = {key: each for key, each in known.items() if each is not None}
        left_out: set[bytes] = set()
        truncates: list[bytes] = []
        size = sum(len(each.value or b"") for each in found.values())
        for records in self._records(start, ends):
            for record in records:
                key, value = bytes(record.key() or b""), record.value()
                partition, offset = int(record.partition() or 0), int(record.offset() or 0)
                if _is_truncate(record):
                    truncates.append(bytes(value or b""))
                key = key[HEADER_BYTES:]
                if key not in known or key in left_out:
                    continue
                before = found.get(key)
                if value is None and before is not None and before.value and before.value[HEADER_BYTES + 1] in _GONE:
                    continue
                found[key] = Latest(partition, offset, None if value is None else bytes(value))
                size += len(value or b"") - len((before and before.value) or b"")
                while size > most and len(found) > 1:
                    other = next(each for each in found if each != key)
                    size -= len(found.pop(other).value or b"")
                    left_out.add(other)
        return found, left_out, truncates

    def _records(self, start: Ends, ends: Ends) -> Iterator[list[Message]]:
        """Yield all committed records from `start` to `ends`, in batches."""
        reached = dict(start)
        left = {partition: end for partition, end in ends.items() if end > reached.get(partition, 0)}
        if not left:
            return
        with self._reader() as client:
            starts = {partition: reached.get(partition, OFFSET_BEGINNING) for partition in left}
            clients.assign(
                client, [TopicPartition(self._topic, partition, offset) for partition, offset in starts.items()]
            )
            while left:
                batch = []
                for record in self._batch(client):
                    partition = int(record.partition() or 0)
                    if partition not in left:
                        continue
                    if record.error() is not None:
                        if self._is_end(record):
                            self._note_end(record, reached, left)
                    elif (offset := int(record.offset() or 0)) < left[partition]:
                        reached[partition] = offset + 1
                        batch.append(record)
                    else:
                        reached[partition] = left[partition]
                    if reached.get(partition, 0) >= left[partition]:
                        del left[partition]
                yield batch

    def _reader(self) -> AbstractContextManager[Consumer]:
        return clients.reading(
            self._settings,
            enable_partition_eof=True,
            # Limits of memory, as for the consumers (consumers.delivery.group).
            defaults={"queued.max.messages.kbytes": 8_192, "fetch.message.max.bytes": 262_144},
        )

    def _batch(self, client: Consumer) -> list[Message]:
        first = client.poll(_TIMEOUT)
        if first is None:
            raise TimeoutError(f"topic {self._topic} could not be read to its end")
        return [first, *client.consume(_AT_ONCE, timeout=0)]

    def _is_end(self, record: Message) -> bool:
        """Whether a record that has an error is the end of its partition; raises the error if not."""
        error = record.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        return error is not None

    def _note_end(self, record: Message, reached: dict[int, int], ends: Ends) -> None:
        """Note the end of a partition: its last records may be marks of transactions, or compacted away."""
        partition, offset = int(record.partition() or 0), int(record.offset() or 0)
        if offset >= ends.get(partition, offset):
            reached[partition] = max(reached.get(partition, 0), ends.get(partition, 0))


def _is_truncate(record: Message) -> bool:
    return len(record.key() or b"") == HEADER_BYTES and record.value() is not None
