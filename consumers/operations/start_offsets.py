"""Finds the offsets at which a replay starts: at the beginning, at a time, or at a WAL position of the source.

A start may be too early, never too late: writes are guarded, so applying an event again is idempotent.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Final

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from consumers.ledger.progress import Place
from infra.kafka import clients, topics
from infra.settings.model import KafkaSettings
from schemas.codec.header import HeaderReader
from schemas.errors import Malformed, UsageError
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn, Offset, format_lsn, parse_lsn
from schemas.wire import HEADER_BYTES

_TIMEOUT: Final = 30.0


@dataclass(frozen=True)
class Beginning:
    """Everything in the topics: the whole table."""

    def __str__(self) -> str:
        """As `parse_start` reads it; the others, too."""
        return "beginning"


@dataclass(frozen=True)
class SinceTime:
    """Everything produced at `moment` or later, and so everything committed at the source since then.

    An event is produced after its commit, so the start is too early by at most the producer's lag. This requires that
    the clock of the producer's machine is not behind the source's.
    """

    moment: datetime

    def __str__(self) -> str:
        return f"timestamp:{self.moment.isoformat()}"


@dataclass(frozen=True)
class SinceLsn:
    """Everything whose transaction committed at `lsn` or later; rows of a snapshot have the stream's position."""

    lsn: Lsn

    def __str__(self) -> str:
        return f"lsn:{format_lsn(self.lsn)}"


Start = Beginning | SinceTime | SinceLsn


def parse_start(text: str) -> Start:
    """Parse `beginning`, `timestamp:2026-01-31T12:00:00Z` or `lsn:16/B374D848`.

    A time without a zone is UTC. Raises UsageError.
    """
    kind, _, value = text.partition(":")
    try:
        if text == "beginning":
            return Beginning()
        if kind == "timestamp":
            moment = datetime.fromisoformat(value)
            return SinceTime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        if kind == "lsn":
            return SinceLsn(parse_lsn(value))
    except ValueError as error:
        raise UsageError(f"--from {text}: {error}", remedy=_FORMS) from None
    raise UsageError(f"invalid --from {text}", remedy=_FORMS)


_FORMS: Final = "use beginning, timestamp:2026-01-31T12:00:00Z or lsn:16/B374D848"


def start_offsets(settings: KafkaSettings, names: Iterable[str], start: Start) -> dict[Place, Offset]:
    """Return the offset at which each partition of the topics `names` starts; topics that do not exist are left out.

    A partition without later events starts at its end. Raises BrokerUnavailable.
    """
    ends = {
        Place(topic, partition): end
        for topic in names
        for partition, end in topics.end_offsets(settings, topic).items()
    }
    if isinstance(start, Beginning) or not ends:
        return {place: Offset(0) for place in ends}
    with _reader(settings) as client:
        if isinstance(start, SinceTime):
            return _since_time(client, ends, start.moment)
        return {place: _since_lsn(client, place, end, start.lsn) for place, end in ends.items()}


def first_key(settings: KafkaSettings, topic: str) -> bytes | None:
    """Return the key of any row's record in the topic, None if there is none."""
    found = first_record(settings, topic)
    return None if found is None else found[0]


def first_record(settings: KafkaSettings, topic: str) -> tuple[bytes, bytes | None] | None:
    """Return key and value of any row's record in the topic, one with a value if a partition begins with one.

    None if there is none: the topic is empty, or has only truncates.
    """
    found: tuple[bytes, bytes | None] | None = None
    with _reader(settings) as client:
        for partition, end in topics.end_offsets(settings, topic).items():
            place = Place(topic, partition)
            low, _ = client.get_watermark_offsets(TopicPartition(*place), timeout=_TIMEOUT)
            while low < end and (record := _next(client, place, low, end)) is not None:
                low = int(record.offset() or 0) + 1
                key, value = record.key(), record.value()
                if key is not None and len(key) > HEADER_BYTES:
                    found = bytes(key), None if value is None else bytes(value)
                    if found[1] is not None:
                        return found
    return found


def _reader(settings: KafkaSettings) -> AbstractContextManager[Consumer]:
    return clients.reading(settings, enable_partition_eof=True, fetch_wait_max_ms=10)


def _since_time(client: Consumer, ends: dict[Place, int], moment: datetime) -> dict[Place, Offset]:
    wanted = [TopicPartition(*place, max(0, int(moment.timestamp() * 1000))) for place in ends]
    found = client.offsets_for_times(wanted, timeout=_TIMEOUT)
    starts: dict[Place, Offset] = {}
    for each in found:
        if each.error is not None:
            raise KafkaException(each.error)
        place = Place(each.topic, each.partition)
        # For a time after every record, Kafka returns a special offset.
        late = each.offset < 0 or each.offset == OFFSET_END
        starts[place] = Offset(ends[place] if late else each.offset)
    return starts


def _since_lsn(client: Consumer, place: Place, end: int, lsn: Lsn) -> Offset:
    """Return the first offset of an event at `lsn` or later; positions never fall within a partition."""
    low, _ = client.get_watermark_offsets(TopicPartition(*place), timeout=_TIMEOUT)
    high = end
    read = HeaderReader()
    while low < high:
        middle = (low + high) // 2
        record, reached = _event_from(client, place, middle, high, read)
        if record is None or reached >= lsn:
            high = middle
        else:
            low = int(record.offset() or 0) + 1
    return Offset(low)


def _event_from(
    client: Consumer, place: Place, offset: int, end: int, read: HeaderReader
) -> tuple[Message | None, int]:
    """Return the first readable event from `offset` to `end`, and its WAL position."""
    while offset < end:
        record = _next(client, place, offset, end)
        if record is None:
            break
        if record.value() is not None:
            try:
                return record, read.prefix(bytes(record.value() or b"")).lsn
            except Malformed:
                pass
        offset = int(record.offset() or 0) + 1
    return None, 0


def _next(client: Consumer, place: Place, offset: int, end: int) -> Message | None:
    """Return the first record at `offset` or later but before `end`: compaction leaves gaps."""
    client.assign([TopicPartition(*place, offset)])
    while True:
        record = client.poll(_TIMEOUT)
        if record is None:
            raise TimeoutError(f"{place.topic}/{place.partition} could not be searched")
        error = record.error()
        if error is not None and error.code() == KafkaError._PARTITION_EOF:
            return None
        if error is not None:
            raise KafkaException(error)
        return record if int(record.offset() or 0) < end else None
