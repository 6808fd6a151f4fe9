"""Reads a topic to its end, folds its records by key, and compares them with the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from uuid import UUID

import psycopg
from confluent_kafka import TopicPartition
from psycopg import sql

from consumers.testing.settling import until_shown
from infra.kafka import clients
from infra.kafka.topics import end_offsets
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from schemas.codec.decoder import Decoder, KeyDecoder
from schemas.events import UNCHANGED, ChangeEvent, Op
from schemas.positions import Position
from schemas.wire import split_wire

Row = dict[str, object]
SqlRow = tuple[str | None, ...]


@dataclass(frozen=True)
class Record:
    """One committed record; `event` is None for a tombstone, `key` is empty for a truncate."""

    partition: int
    offset: int
    raw_key: bytes
    key: dict[str, object]
    event: ChangeEvent | None

    @property
    def op(self) -> str:
        return "tombstone" if self.event is None else str(self.event.op)


def read_topic(settings: Settings, topic: str) -> list[Record]:
    """Return the topic's committed records up to its current end, each partition in offset order.

    Waits for the end of open transactions: a commit returns a moment before all partitions show it.
    """
    return read_topics(settings, (topic,))[topic]


def read_topics(settings: Settings, topics: Sequence[str]) -> dict[str, list[Record]]:
    """Return topic → its records, as `read_topic` does, with one reader for all of them."""
    until_shown(settings.kafka, *topics)
    read: dict[str, list[Record]] = {topic: [] for topic in topics}
    for topic, record in _records(settings, topics):
        read[topic].append(record)
    for records in read.values():
        records.sort(key=lambda record: (record.partition, record.offset))
    return read


def _records(settings: Settings, topics: Sequence[str]) -> Iterator[tuple[str, Record]]:
    decoders = Decoders(settings)
    left = {
        (topic, partition) for topic in topics for partition, end in end_offsets(settings.kafka, topic).items() if end
    }
    with clients.reading(settings.kafka, enable_partition_eof=True, fetch_wait_max_ms=10) as client:
        clients.assign(client, [TopicPartition(topic, partition, 0) for topic, partition in sorted(left)])
        while left:
            message = client.poll(120)
            assert message is not None, f"{', '.join(topics)} stopped answering"
            topic, partition = message.topic(), message.partition()
            assert topic is not None
            assert partition is not None
            if message.error() is not None:
                left.discard((topic, partition))  # the end of the partition
                continue
            record = decoders.record(partition, message.offset() or 0, message.key() or b"", message.value())
            yield topic, record


class Decoders:
    """Decodes a topic's records by the schemas that they name."""

    def __init__(self, settings: Settings) -> None:
        self._registry = open_registry(settings)
        self._values: dict[int, Decoder] = {}
        self._keys: dict[int, KeyDecoder] = {}

    def record(self, partition: int, offset: int, key: bytes, value: bytes | None) -> Record:
        key_id, _ = split_wire(key)
        if key_id not in self._keys:
            self._keys[key_id] = KeyDecoder(self._registry.schema(key_id))
        decoded = self._keys[key_id].decode_key(key)
        event = None
        if value is not None:
            value_id, _ = split_wire(value)
            if value_id not in self._values:
                self._values[value_id] = Decoder(self._registry.schema(value_id))
            event = self._values[value_id].decode(value)
        return Record(partition, offset, key, decoded, event)


def fold(records: list[Record]) -> dict[bytes, Row]:
    """Return key → row after all records; raises AssertionError if the topic is not a valid table.

    A value that was left out as unchanged is taken from the key's row.
    """
    partitions: dict[int, dict[bytes, Row]] = {}
    for record in records:
        rows = partitions.setdefault(record.partition, {})
        event = record.event
        if event is None or event.op is Op.DELETE:
            rows.pop(record.raw_key, None)
        elif event.op is Op.TRUNCATE:
            rows.clear()
        else:
            assert event.after is not None
            before = rows.get(record.raw_key, {})
            rows[record.raw_key] = {
                name: before.get(name, UNCHANGED) if value is UNCHANGED else value
                for name, value in event.after.items()
            }
    folded: dict[bytes, Row] = {}
    for rows in partitions.values():
        assert not folded.keys() & rows.keys(), "a key is in two partitions"
        folded.update(rows)
    return folded


def require_order(records: list[Record], *, broker_died: bool = False) -> None:
    """Fail unless positions grow strictly with the offsets of each key, and never go back in a partition's truncates.

    A delete and its tombstone count as one. With `broker_died` an event may occur again at the same position: a broker
    without replicas that is killed right after a commit may lose it (docs/how-to/recovery.md), so that the next session
    publishes it again. A row that is re-snapshotted after a truncate may have the position of both, if nothing was
    written in between.
    """
    last: dict[tuple[int, bytes], Position] = {}
    emptied: dict[int, Position] = {}
    for record in records:
        if record.event is None:
            continue
        place = record.partition, record.raw_key
        position = record.event.source.position
        if record.event.op is Op.TRUNCATE:
            emptied[record.partition] = position
        restart_from_scratch = record.event.op is Op.READ and emptied.get(record.partition) == position
        again = last.get(place) == position and (broker_died or restart_from_scratch)
        assert place not in last or last[place] < position or again, (
            f"{record.op} of {record.key} at {position} is behind {last[place]}"
        )
        last[place] = position


def table_rows(connection: psycopg.Connection, table: str, columns: tuple[str, ...] | None = None) -> list[SqlRow]:
    """Return the table's rows, sorted, each value as PostgreSQL's text."""
    schema, _, name = table.partition(".")
    if columns is None:
        cursor = connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(sql.Identifier(schema, name)))
        columns = tuple(column.name for column in cursor.description or ())
    query = sql.SQL("SELECT {} FROM {}").format(
        sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(column)) for column in columns),
        sql.Identifier(schema, name),
    )
    return sorted(connection.execute(query).fetchall(), key=_sortable)


def folded_rows(records: list[Record], columns: tuple[str, ...] | None = None) -> list[SqlRow]:
    """Return the topic's rows in the form of `table_rows`."""
    rows = fold(records).values()
    return sorted((tuple(text(row[name]) for name in columns or tuple(row)) for row in rows), key=_sortable)


def _sortable(row: SqlRow) -> tuple[tuple[bool, str], ...]:
    return tuple((value is None, value or "") for value in row)


def text(value: object) -> str | None:  # noqa: PLR0911  # one for each type
    """Return a decoded value as PostgreSQL prints it."""
    match value:
        case None:
            return None
        case bool():
            return "true" if value else "false"
        case datetime():
            shown = f"{value:%Y-%m-%d %H:%M:%S}" + _fraction(value.microsecond)
            return shown + "+00" if value.tzinfo else shown
        case time_of_day():
            return f"{value:%H:%M:%S}" + _fraction(value.microsecond)
        case date():
            return value.isoformat()
        case Decimal():
            return f"{value:f}"
        case float():
            return f"{value:.15g}"
        case str() | int() | UUID():
            return str(value)
    raise AssertionError(f"{value!r} is in a row of the topic")


def _fraction(microsecond: int) -> str:
    return f".{microsecond:06}".rstrip("0") if microsecond else ""


def ops(records: list[Record], **key: object) -> list[str]:
    """Return the letters of a key's records in order (`tombstone` for a tombstone)."""
    return [record.op for record in records if record.key == key]


def states(records: list[Record]) -> Mapping[str, int]:
    """Return how many records there are of each op."""
    counted: dict[str, int] = {}
    for record in records:
        counted[record.op] = counted.get(record.op, 0) + 1
    return counted
