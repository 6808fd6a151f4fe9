"""What a topic says of a table's rows: every key's last event, read without a group and without a trace."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Message, TopicPartition

from infra.kafka import clients, topics
from infra.settings.model import KafkaSettings
from schemas.avro import row_record
from schemas.errors import BrokerUnavailable, Malformed
from schemas.header import HeaderReader
from schemas.varints import decode_long
from schemas.wire import HEADER_BYTES, split_wire

_AT_ONCE: Final = 10_000
_TIMEOUT: Final = 30.0
_NEW_ROW: Final = b"\x00\x00\x02"
"""How the rest of a record behind its times starts when nothing is left out, no old row is told, and a new one is."""
_GONE: Final = frozenset(b"dt")

Ends = Mapping[int, int]
"""Partition → the offset behind its last record."""


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
        """Return where the partitions end now, with what is committed and not shown everywhere yet."""
        return topics.written_offsets(self._settings, self._topic)

    def checksums(self, ends: Ends, row_fields: object) -> dict[bytes, int | None]:
        """Return key → a checksum of its row's bytes as `ends` has it; None where the bytes cannot be compared.

        They can where the event was written with `row_fields`, tells all of the new row and nothing of the old one.
        Keys that are deleted are not there; truncates are left to `latest`.
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
        """Return the last record of each of `keys`, where there is one, and the records of all truncates.

        Between them stand the keys that were left out, since values of more than `most` bytes, or one, are not held
        at once. A delete's event stands for the tombstone behind it, since it has a position.
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
            queued_max_messages_kbytes=16_384,  # 64 MB by default, which cost twice that
        ) as client:
            client.assign([TopicPartition(self._topic, partition, OFFSET_BEGINNING) for partition in left])
            while left:
                first = client.poll(_TIMEOUT)
                if first is None:
                    raise BrokerUnavailable(f"Kafka stopped answering while {self._topic} was read")
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
