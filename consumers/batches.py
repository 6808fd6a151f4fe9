"""From consumed records to transactions: reads, decides, and cuts what came out into sub-batches. Does no I/O.

A sub-batch holds at most so many changes and any number of skipped events, over any partitions, each in the order
of its offsets. Where it fails it can be cut again, smaller, from the same records: deciding is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from confluent_kafka import KafkaError

from consumers.decisions import TOMBSTONE, Change, Decision, Park, Skip
from consumers.ledger import Advance, Place
from consumers.migration import Migration
from consumers.selection import NOT_SELECTED, Selection
from schemas import codec
from schemas.errors import HeadraceError, Malformed
from schemas.events import ChangeEvent
from schemas.positions import Offset
from schemas.projection import projection
from schemas.varints import encode_long
from schemas.wire import HEADER_BYTES, split_wire


class Record(Protocol):
    """What is used of confluent_kafka.Message."""

    def error(self) -> KafkaError | None: ...
    def topic(self) -> str | None: ...
    def partition(self) -> int | None: ...
    def offset(self) -> int | None: ...
    def key(self) -> Any: ...
    def value(self) -> Any: ...


class UnknownSchemaId(Malformed):
    """Check that producer and consumer use the same registry, then `headrace parked retry`."""


Schemas = Callable[[int], dict[str, Any]]
"""Schema id → the schema; raises UnknownSchemaId when there is none."""


class Parked(NamedTuple):
    """An event that is kept for a person."""

    place: Place
    offset: Offset
    reason: str
    key: bytes | None
    value: bytes


@dataclass(slots=True)
class SubBatch:
    """What one transaction does: records `start` to `end` of those planned, as changes and moves of the ledger.

    `origins` says for each change where it came from.
    """

    start: int
    end: int
    advances: list[Advance] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    origins: list[tuple[Place, Offset]] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)


Overrides = Mapping[tuple[Place, Offset], Decision]


class Planner:
    """Plans the sub-batches of one migration; remembers how the records of each schema are read."""

    def __init__(self, migration: Migration, schemas: Schemas) -> None:
        self._migration = migration
        self._schemas = schemas
        self._projections: dict[bytes, Callable[[bytes], ChangeEvent]] = {}
        self._needles = _needles(migration)
        self.selection: Selection | None = None
        """What the present run is limited to; None: nothing."""
        self._unmentioned = f"no {' or '.join(migration.mentions)} in it"

    def decide(self, value: bytes) -> Decision:
        """Return what the migration wants for one record; a Park when the record cannot be read."""
        try:
            project = self._projections.get(value[:HEADER_BYTES]) or self._learn(value)
            event = project(value)
        except Malformed as error:
            return Park(error.problem)
        try:
            return self._migration.decide(event)
        except HeadraceError:
            raise
        except Exception as error:
            source = event.source
            raise HeadraceError(
                f"{self._migration.name} cannot decide about an event of {source.table} at {source.position}: "
                f"{type(error).__name__}",
                remedy="this is a bug in the migration's decide()",
            ) from error

    def plan(  # noqa: PLR0912, PLR0915 - one loop, since a call for each event would halve its speed
        self,
        records: Sequence[Record],
        positions: Mapping[Place, Offset],
        limit: int | Callable[[], int],
        overrides: Overrides = {},  # noqa: B006 - read only
    ) -> Iterator[SubBatch]:
        """Yield the sub-batches of `records`, each with at most `limit` changes, asked anew for each if it can be.

        `positions` says which offset each partition needs next: records before it, and those of other partitions,
        are left out. `overrides` are decisions made already. Records may include ends of partitions.
        """
        size = limit() if callable(limit) else limit
        selection, known = self.selection, self._projections
        needles = () if selection or overrides else self._needles
        several = len(self._migration.tables) > 1
        following = dict(positions)
        sub_batch = SubBatch(0, 0)
        open_advances: dict[Place, Advance] = {}
        place: Place | None = None
        topic_name: str | None = None
        number: int | None = None
        advance: Advance | None = None
        unmentioned = 0
        for index, record in enumerate(records):
            if record.partition() != number or (several and record.topic() != topic_name):
                if advance is not None and unmentioned:
                    _count(advance, self._unmentioned, unmentioned)
                    unmentioned = 0
                topic_name, number = record.topic(), record.partition()
                place = Place(str(topic_name), int(number or 0))
                advance = _opened(place, open_advances, following)
            if advance is None or place is None:
                continue
            offset = record.offset()
            if record.error() is not None:
                if offset is not None and offset > advance.next_offset:
                    # The end of the partition: what lies before it are marks of transactions, not events.
                    advance.next_offset = Offset(offset)
                continue
            if offset is None or offset < advance.next_offset:
                continue
            value = record.value()
            advance.next_offset = Offset(offset + 1)
            if value is None:
                _count(advance, TOMBSTONE, 1)
                continue
            if selection is not None and not selection.has(record.key()):
                _count(advance, NOT_SELECTED, 1)
                continue
            if needles and not mentions(value, needles) and (value[:HEADER_BYTES] in known or self._learned(value)):
                unmentioned += 1
                continue
            decision = self.decide(value)
            if overrides:
                decision = overrides.get((place, Offset(offset)), decision)
            if isinstance(decision, Skip):
                _count(advance, decision.reason, 1)
                continue
            if isinstance(decision, Change):
                advance.changes += 1
                sub_batch.changes.append(decision)
                sub_batch.origins.append((place, Offset(offset)))
            else:
                advance.parked += 1
                sub_batch.parked.append(Parked(place, Offset(offset), decision.reason, record.key(), value))
            if len(sub_batch.changes) + len(sub_batch.parked) >= size:
                if unmentioned:
                    _count(advance, self._unmentioned, unmentioned)
                    unmentioned = 0
                yield _closed(sub_batch, index + 1, open_advances, following)
                sub_batch = SubBatch(index + 1, index + 1)
                size = limit() if callable(limit) else limit
                open_advances = {}
                advance = _opened(place, open_advances, following)
        if advance is not None and unmentioned:
            _count(advance, self._unmentioned, unmentioned)
        last = _closed(sub_batch, len(records), open_advances, following)
        if last.advances:
            yield last

    def _learned(self, value: bytes) -> bool:
        try:
            self._learn(value)
        except Malformed:
            return False
        return True

    def _learn(self, value: bytes) -> Callable[[bytes], ChangeEvent]:
        schema_id, _ = split_wire(value)
        project = projection(self._schemas(schema_id), self._migration.columns, self._migration.optional_columns)
        self._projections[value[:HEADER_BYTES]] = project
        return project


def _mentions(value: bytes, needles: tuple[bytes, ...]) -> bool:
    return any(needle in value for needle in needles)


mentions: Final[Callable[[bytes, tuple[bytes, ...]], bool]] = (
    _mentions if codec.compiled is None else codec.compiled.mentions
)
"""Whether one of the needles stands in the value."""


def _opened(place: Place, advances: dict[Place, Advance], following: Mapping[Place, Offset]) -> Advance | None:
    """Return the partition's move in the present sub-batch; None when the partition is not ours."""
    if place in advances:
        return advances[place]
    if place not in following:
        return None
    advances[place] = Advance(place, following[place], following[place])
    return advances[place]


def _closed(sub_batch: SubBatch, end: int, advances: dict[Place, Advance], following: dict[Place, Offset]) -> SubBatch:
    sub_batch.end = end
    sub_batch.advances = [advance for advance in advances.values() if advance.next_offset != advance.expected]
    for advance in sub_batch.advances:
        following[advance.place] = advance.next_offset
    return sub_batch


def _count(advance: Advance, reason: str, number: int) -> None:
    advance.skipped[reason] = advance.skipped.get(reason, 0) + number


def _needles(migration: Migration) -> tuple[bytes, ...]:
    """Return the bytes of which an event of interest has at least one; none when every event is of interest.

    A column that the stream left out is of interest too: its name stands in `unchanged`, as an Avro string.
    """
    if not migration.mentions:
        return ()
    texts = [text.encode() for text in migration.mentions]
    names = [name.encode() for name in migration.columns]
    return (*texts, *(encode_long(len(name)) + name for name in names))
