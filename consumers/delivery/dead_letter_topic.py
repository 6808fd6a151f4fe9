"""The dead letters' events, kept whole in `<prefix>.parked.<migration>`; which of them are open, the database knows.

An event's key is `database/topic/partition/offset/run` and the topic is compacted: what is parked twice in a run is one
entry, and an entry that is removed is never one of another database or of a later run. The value is the event as it
was; why and when stand in the headers. See consumers/delivery/dead_letter_rows.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from confluent_kafka import Message, Producer

from consumers.ledger.progress import Place
from infra.kafka import clients, topics
from infra.service import log
from infra.settings.model import Settings
from schemas import formats
from schemas.errors import BrokerUnavailable, Malformed
from schemas.positions import Offset
from schemas.topics import parked_topic

REASON_HEADER: Final = "reason"
RUN_HEADER: Final = "run"
FORMAT_HEADER: Final = "format"
KEY_HEADER: Final = "key"
"""The key that the event has in its own topic."""

_FLUSH_SECONDS: Final = 30.0

Identity = tuple[Place, Offset, int]
"""An event and the run that parked it: one parking of a migration, told from the next of the same event."""


class Parked(NamedTuple):
    """An event that is kept for a person."""

    place: Place
    offset: Offset
    reason: str
    key: bytes | None
    value: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One parked event: of the worker for `database`, in its run `run`."""

    database: str
    place: Place
    offset: Offset
    run: int
    reason: str
    parked_at: datetime
    """In UTC."""
    value: bytes | None
    """None: the topic has lost it."""
    key: bytes = b""
    """The key that the event has in its own topic."""

    @property
    def name(self) -> str:
        """`database/topic/partition/offset`, by which a person chooses it."""
        return f"{self.database}/{self.place.topic}/{self.place.partition}/{self.offset}"

    @property
    def identity(self) -> Identity:
        return self.place, self.offset, self.run


def read_parked(settings: Settings, migration: str) -> list[Entry]:
    """Return every event that is in the topic, in the order of topic, partition and offset.

    Among them are some that are not open: settled lately, or applied after all by the consumer that parked them. A
    record that no consumer of headrace's wrote is left out, and said in the log. Raises NewerFormat.
    """
    entries: dict[bytes, Entry] = {}
    topic = parked_topic(settings.prefix, migration)
    for record in topics.LogReader(settings.kafka, topic).read():
        key = bytes(record.key() or b"")
        if record.value() is None:
            entries.pop(key, None)
            continue
        try:
            entries[key] = _entry(key, record)
        except Malformed as error:
            log.get(migration=migration).warning(
                "not a dead letter: left out", topic=topic, offset=record.offset(), **{log.REASON: error.problem}
            )
    return sorted(entries.values(), key=lambda entry: (entry.place, entry.offset, entry.run))


def _headers(record: Message) -> Iterator[tuple[str, bytes]]:
    for name, value in dict(record.headers() or []).items():
        if isinstance(value, bytes):
            yield name, value


def _record_key(database: str, place: Place, offset: Offset, run: int) -> bytes:
    return f"{database}/{place.topic}/{place.partition}/{offset}/{run}".encode()


def _entry(key: bytes, record: Message) -> Entry:
    headers = dict(_headers(record))
    where = f"dead letter {key.decode(errors='backslashreplace')}"
    try:
        formats.DEAD_LETTERS.require(int(headers.get(FORMAT_HEADER, b"1")), where)
        database, topic, partition, offset, run = key.decode().split("/")
        return Entry(
            database,
            Place(topic, int(partition)),
            Offset(int(offset)),
            int(run),
            headers.get(REASON_HEADER, b"").decode(errors="replace"),
            datetime.fromtimestamp(record.timestamp()[1] // 1000, UTC),
            bytes(record.value() or b""),
            headers.get(KEY_HEADER, b""),
        )
    except (ValueError, OverflowError) as error:
        raise Malformed(f"{where} is not one of headrace's", remedy="take away what else writes that topic") from error


class Parking:
    """Where the events of one migration's worker for `database` are parked; connects when the first one comes."""

    def __init__(self, settings: Settings, migration: str, database: str) -> None:
        self._settings = settings
        self._database = database
        self._topic = parked_topic(settings.prefix, migration)
        self._producer: Producer | None = None
        self._log = log.get(migration=migration)

    def keep(self, parked: Sequence[Parked], run: int) -> None:
        """Park events, durably, before the ledger moves past them; a duplicate in the same run replaces its equal.

        Each is a dead letter once the transaction that moves the ledger has recorded it (`dead_letters.record`).

        Raises BrokerUnavailable when Kafka did not confirm all of them: the caller must not go on.
        """
        producer = self._connected()
        for event in parked:
            self._log.warning(
                "parked",
                topic=event.place.topic,
                partition=event.place.partition,
                offset=event.offset,
                reason=event.reason,
            )
        self._send(
            producer,
            (
                {
                    "key": _record_key(self._database, event.place, event.offset, run),
                    "value": event.value,
                    "headers": {
                        FORMAT_HEADER: str(formats.DEAD_LETTERS.version),
                        REASON_HEADER: event.reason,
                        RUN_HEADER: str(run),
                        KEY_HEADER: event.key,
                    },
                }
                for event in parked
            ),
        )

    def remove(self, entries: Iterable[Entry]) -> None:
        """Take events out, durably, long after they were settled; a duplicate does nothing.

        Raises BrokerUnavailable as `keep` does: then they may be removed again.
        """
        keys = [_record_key(entry.database, *entry.identity) for entry in entries]
        if keys:
            self._send(self._connected(), ({"key": key, "value": None} for key in keys))

    def _connected(self) -> Producer:
        if self._producer is None:
            try:
                topics.ensure_topic(self._settings.kafka, self._topic, partitions=1)
            except TimeoutError:
                raise BrokerUnavailable(f"Kafka did not answer when {self._topic} was to be made") from None
            self._producer = clients.producer(self._settings.kafka, acks="all")
        return self._producer

    def _send(self, producer: Producer, records: Iterable[dict[str, Any]]) -> None:
        failures: list[Any] = []
        for record in records:
            producer.produce(
                self._topic,
                **record,
                partition=topics.ONLY_PARTITION,
                on_delivery=lambda error, _: failures.append(error) if error else None,
            )
        left = producer.flush(_FLUSH_SECONDS)
        if failures:
            raise clients.translate(failures[0], self._settings.kafka)
        if left:
            raise BrokerUnavailable(f"Kafka did not confirm {left} parked events within {_FLUSH_SECONDS:.0f} s")
