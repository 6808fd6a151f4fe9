"""Reads the last event of every key of a table's topic, without a consumer group and without side effects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Message, TopicPartition

from infra.kafka import clients, topics
from infra.settings.model import KafkaSettings
from schemas.avro import row_record
from schemas.codec.header import HeaderReader
from schemas.codec.varints import decode_long
from schemas.errors import Malformed
from schemas.wire import HEADER_BYTES, split_wire

_AT_ONCE: Final = 10_000
_TIMEOUT: Final = 30.0
_NEW_ROW: Final = b"\x00\x00\x02"
"""The bytes after a record's times if no value is left out, the old row is absent and the new row is present."""
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

    def __init__(self, settings: KafkaSettings, topic: str, schema: Callable[[int], dict[str, Any]]) -> None:
        self._settings = settings
        self._topic = topic
        self._schema = schema

    def ends(self) -> dict[int, int]:
        """Return the current ends of the partitions, records included that are committed but not readable yet."""
        return topics.written_offsets(self._settings, self._topic)

    def checksums(self, ends: Ends, row_fields: object) -> dict[bytes, int | None]:
        """Return key → a checksum of its row's bytes before `ends`; None if the bytes cannot be compared.

        They can if the event was written with `row_fields`, and has the whole new row and no old one. Deleted keys are
        left out; truncates are ignored, see `latest`.
        """
        sums: dict[bytes, int | None] = {}
        read = HeaderReader()
        comparable: dict[bytes, bool] = {}
        for records in self._records(ends):
            for record in records:
                key, value = bytes(record.key() or b""), record.value()
                if len(key) <= HEADER_BYTES:
                    continue
                key = key[HEADER_BYTES:]
                if value is None:
                    sums.pop(key, None)
                    continue
                value = bytes(value)
                try:
                    head = value[:HEADER_BYTES]
                    if head not in comparable:
                        comparable[head] = row_record(self._schema(split_wire(value)[0]))["fields"] == row_fields
                    start = read(value)[-1]
                    if value[HEADER_BYTES + 1] in _GONE:
                        sums.pop(key, None)
                        continue
                    _, row = decode_long(value, start)
                except (Malformed, IndexError, ValueError, KeyError):
                    sums[key] = None
                    continue
                same = comparable[head] and value.startswith(_NEW_ROW, row)
                sums[key] = hash(value[row + len(_NEW_ROW) :]) if same else None
        return sums

    def latest(
        self, ends: Ends, keys: Collection[bytes], most: int
    ) -> tuple[dict[bytes, Latest], set[bytes], list[bytes]]:
        """Return the last records of `keys`, the keys left out, and the records of all truncates.

        Keys are left out if the values exceed `most` bytes; one value is always returned. A delete's event is returned
        instead of the tombstone after it, since it has a position.
        """
        found: dict[bytes, Latest] = {}
        left_out: set[bytes] = set()
        truncates: list[bytes] = []
        size = 0
        for records in self._records(ends):
            for record in records:
                key, value = bytes(record.key() or b""), record.value()
                partition, offset = int(record.partition() or 0), int(record.offset() or 0)
                if len(key) == HEADER_BYTES and value is not None:
                    truncates.append(bytes(value))
                key = key[HEADER_BYTES:]
                if key not in keys or key in left_out:
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

    def _records(self, ends: Ends) -> Iterator[list[Message]]:
        """Yield all committed records before `ends`, in batches."""
        left = {partition: end for partition, end in ends.items() if end > 0}
        with clients.reading(
            self._settings,
            enable_partition_eof=True,
            queued_max_messages_kbytes=16_384,  # the default of 64 MB takes twice that much memory
        ) as client:
            clients.assign(client, [TopicPartition(self._topic, partition, OFFSET_BEGINNING) for partition in left])
            while left:
                first = client.poll(_TIMEOUT)
                if first is None:
                    raise TimeoutError(f"topic {self._topic} could not be read to its end")
                batch = []
                for record in [first, *client.consume(_AT_ONCE, timeout=0)]:
                    error, partition = record.error(), record.partition()
                    if error is not None and error.code() != KafkaError._PARTITION_EOF:
                        raise KafkaException(error)
                    if partition not in left:
                        continue
                    offset = int(record.offset() or 0)
                    if error is None and offset < left[partition]:
                        batch.append(record)
                    if offset + (error is None) >= left[partition]:
                        del left[partition]
                yield batch
