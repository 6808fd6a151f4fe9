"""The topic `<prefix>.dead_letters.<migration>`, which has the complete events of dead letters.

The database records which of them are open (consumers/delivery/dead_letter_rows.py). The key is
`database/topic/partition/offset/run` and the topic is compacted: an event that becomes a dead letter twice in a run is
one entry, and removing it removes no entry of another database or a later run. The value is the unchanged event; the
headers have the reason, the run and the event's key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from confluent_kafka import Message, Producer

from consumers.ledger.progress import Place
from infra.kafka import clients, topics
from infra.service import log
from infra.settings.model import Settings
from schemas import formats
from schemas.errors import Malformed
from schemas.lazy_dataclass import dataclass
from schemas.positions import Offset
from schemas.topics import dead_letters_topic

REASON_HEADER: Final = "reason"
RUN_HEADER: Final = "run"
FORMAT_HEADER: Final = "format"
KEY_HEADER: Final = "key"
"""The key that the event has in its own topic."""

_FLUSH_SECONDS: Final = 30.0

Identity = tuple[Place, Offset, int]
"""An event and the run in which it became a dead letter, which distinguishes it from those of later runs."""


class NewDeadLetter(NamedTuple):
    """An event that is kept for an operator."""

    place: Place
    offset: Offset
    reason: str
    key: bytes | None
    value: bytes


@dataclass(frozen=True)
class Entry:
    """One dead letter, recorded by a consumer of `database` in run `run`."""

    database: str
    place: Place
    offset: Offset
    run: int
    reason: str
    recorded_at: datetime
    """In UTC."""
    value: bytes | None
    """None if the topic no longer has it."""
    key: bytes = b""
    """The key that the event has in its own topic."""

    @property
    def name(self) -> str:
        """`database/topic/partition/offset`, by which an operator selects it."""
        return f"{self.database}/{self.place.topic}/{self.place.partition}/{self.offset}"

    @property
    def identity(self) -> Identity:
        return self.place, self.offset, self.run


def read_dead_letters_topic(settings: Settings, migration: str) -> list[Entry]:
    """Return every event in the topic, ordered by topic, partition and offset.

    Some are not open: settled recently, or applied after all by the consumer that wrote them. A record that was not
    written by headrace is skipped and logged. Raises NewerFormat.
    """
    entries: dict[bytes, Entry] = {}
    topic = dead_letters_topic(settings.prefix, migration)
    for record in topics.LogReader(settings.kafka, topic).read():
        key = bytes(record.key() or b"")
        if record.value() is None:
            entries.pop(key, None)
            continue
        try:
            entries[key] = _entry(key, record)
        except Malformed as error:
            log.get(migration=migration).warning(
                "record skipped, not a dead letter", topic=topic, offset=record.offset(), **{log.REASON: error.problem}
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
        raise Malformed(
            f"{where} was not written by headrace", remedy="stop other programs from writing to that topic"
        ) from error


class DeadLetterWriter:
    """Writes the dead letters of one migration's consumer for `database`; connects on first use."""

    def __init__(self, settings: Settings, migration: str, database: str) -> None:
        self._settings = settings
        self._database = database
        self._topic = dead_letters_topic(settings.prefix, migration)
        self._producer: Producer | None = None
        self._log = log.get(migration=migration)

    def keep(self, dead_letters: Sequence[NewDeadLetter], run: int) -> None:
        """Write events durably before the ledger advances past them. Idempotent within a run.

        Each is a dead letter once the transaction that advances the ledger has recorded it (`dead_letter_rows.record`).

        Raises BrokerUnavailable if Kafka did not confirm all of them: the caller must not continue.
        """
        producer = self._connected()
        for event in dead_letters:
            self._log.warning(
                "event became a dead letter",
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
                for event in dead_letters
            ),
        )

    def remove(self, entries: Iterable[Entry]) -> None:
        """Remove events durably, long after they were settled. Idempotent.

        Raises BrokerUnavailable as `keep` does; the caller may then retry.
        """
        keys = [_record_key(entry.database, *entry.identity) for entry in entries]
        if keys:
            self._send(self._connected(), ({"key": key, "value": None} for key in keys))

    def _connected(self) -> Producer:
        if self._producer is None:
            topics.ensure_topic(self._settings.kafka, self._topic, partitions=1)
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
            text = f"{left} dead letters were not confirmed within {_FLUSH_SECONDS:.0f} s"
            raise clients.unreachable(text, self._settings.kafka)
