"""From consumed records to transactions: reads, decides, and cuts what came out into sub-batches. Does no I/O.

A sub-batch holds at most so many changes and any number of skipped events, over any partitions, each in the order
of its offsets. Where it fails it can be cut again, smaller, from the same records: deciding is pure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from consumers.contract import contract_checks
from consumers.contract.decisions import TOMBSTONE, Change, Decision, Park, Skip
from consumers.contract.migration import Migration
from consumers.delivery.dead_letter_topic import Parked
from consumers.delivery.topics import Schemas
from consumers.ledger.progress import Advance, Place
from consumers.planning.key_selection import NOT_SELECTED, Selection
from consumers.planning.prefilter import Record, sift
from schemas.errors import Malformed
from schemas.events import ChangeEvent
from schemas.positions import Offset
from schemas.projection import projection
from schemas.varints import encode_long
from schemas.wire import HEADER_BYTES, split_wire
from schemas.xid_snapshot import Hidden


@dataclass(slots=True)
class SubBatch:
    """What one transaction does: records `start` to `end` of those planned, as changes and moves of the ledger.

    `origins` are the records that its changes came from, one for each, and `xids` the low halves of their transactions'
    ids: None for a row that a snapshot read, and for an event of another database, whose ids say nothing here.
    """

    start: int
    end: int
    advances: list[Advance] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    origins: list[Record] = field(default_factory=list)
    xids: list[int | None] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)

    @property
    def size(self) -> int:
        """How many events of it are more than counted."""
        return len(self.changes) + len(self.parked)

    def waiting(self, hidden: Hidden) -> dict[Place, Waiting]:
        """Return where each partition has to stop, because the transaction of the event there is `hidden`."""
        found: dict[Place, Waiting] = {}
        if hidden.any_of(self.xids):
            for record, xid in zip(self.origins, self.xids, strict=True):
                if (full := hidden.full(xid)) is not None:
                    place, offset = origin_of(record)
                    found.setdefault(place, Waiting(offset, full))
        return found


class Waiting(NamedTuple):
    """The first event of a partition that cannot be applied yet.

    `xid` is the 64-bit id of its transaction, which is not visible yet; None: its row is locked by another session.
    """

    offset: Offset
    xid: int | None


Judgement = tuple[Decision, int | None]
"""What a migration decides about an event, and the low half of its transaction's id, as in SubBatch.

A plain tuple: one is made for each event, and a named one takes ten times as long to make.
"""

Overrides = Mapping[tuple[Place, Offset], Decision]


class Planner:
    """Plans the sub-batches of one migration; remembers how the records of each schema are read."""

    def __init__(self, migration: Migration, schemas: Schemas, database: str) -> None:
        self._migration = migration
        self._database = database
        self._schemas = schemas
        self._projections: dict[bytes, Callable[[bytes], ChangeEvent]] = {}
        self._needles = _needles(migration)
        self.selection: Selection | None = None
        """What the present run is limited to; None: nothing."""
        self._unmentioned = f"no {' or '.join(migration.mentions)} in it"

    def limit(self, selection: Mapping[str, Sequence[str]]) -> None:
        """Limit the plans to what a run is limited to, as the ledger has it; with nothing they are of every event."""
        self.selection = Selection(selection, self._schemas) if selection else None

    def judge(self, value: bytes) -> Judgement:
        """Return what the migration decides about a record's value. An event that cannot be read is parked."""
        try:
            project = self._projections.get(value[:HEADER_BYTES]) or self._learn(value)
        except Malformed as error:
            return Park(error.problem), None
        return self._judged(project, value)

    def _judged(self, project: Callable[[bytes], ChangeEvent], value: bytes) -> Judgement:
        try:
            event = project(value)
        except Malformed as error:
            return Park(error.problem), None
        try:
            decision = self._migration.decide(event)
        except Exception as error:
            raise contract_checks.undecided(self._migration, event, error) from error
        if type(decision) is Skip and type(decision.reason) is str:
            return decision, None  # nothing is written, whatever is visible: as of nearly all, so it is asked first
        contract_checks.require_decision(self._migration, decision)
        if not isinstance(decision, Change):
            return decision, None
        source = event.source
        return decision, source.xid if source.database == self._database else None

    def plan(
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
        records = list(records)
        size = limit() if callable(limit) else limit
        needles = () if self.selection or overrides else self._needles
        several = len(self._migration.tables) > 1
        following = dict(positions)
        sub_batch = SubBatch(0, 0)
        advances: dict[Place, Advance] = {}
        index = 0
        while index < len(records):
            record = records[index]
            advance = _opened(place_of(record), advances, following)
            if advance is None or record.error() is not None:
                _pass(record, advance)
                index += 1
                continue
            if needles and (record.offset() or 0) >= advance.next_offset:
                self._meet(record.value())
            index, advance.next_offset, tombstones, unmentioned, candidates = sift(
                records,
                index,
                record.topic() if several else None,
                record.partition(),
                advance.next_offset,
                needles,
                self._projections,
                size - sub_batch.size,
            )
            _count(advance, TOMBSTONE, tombstones)
            _count(advance, self._unmentioned, unmentioned)
            self._add(sub_batch, advance, candidates, overrides)
            if sub_batch.size >= size:
                yield _closed(sub_batch, index, advances, following)
                sub_batch = SubBatch(index, index)
                size = limit() if callable(limit) else limit
                advances = {}
        last = _closed(sub_batch, len(records), advances, following)
        if last.advances:
            yield last

    def _add(self, sub_batch: SubBatch, advance: Advance, candidates: list[Record], overrides: Overrides) -> None:
        """Decide about records of one partition and schema, and add to the sub-batch what came out."""
        if not candidates:
            return
        selection, changes = self.selection, len(sub_batch.changes)
        project = self._projections.get(candidates[0].value()[:HEADER_BYTES])
        judged = self._judged
        for record in candidates:
            if selection is not None and not selection.has(record.key()):
                _count(advance, NOT_SELECTED, 1)
                continue
            value = record.value()
            decision, xid = judged(project, value) if project is not None else self.judge(value)
            if overrides:
                decision = overrides.get(origin_of(record), decision)
            if isinstance(decision, Change):
                sub_batch.changes.append(decision)
                sub_batch.origins.append(record)
                sub_batch.xids.append(xid)
            elif isinstance(decision, Skip):
                _count(advance, decision.reason, 1)
            else:
                advance.parked += 1
                sub_batch.parked.append(Parked(*origin_of(record), decision.reason, record.key(), value))
        advance.changes += len(sub_batch.changes) - changes

    def _meet(self, value: bytes | None) -> None:
        """Learn the record's schema, if it is a new one that can be read."""
        if value is not None and value[:HEADER_BYTES] not in self._projections:
            with contextlib.suppress(Malformed):
                self._learn(value)

    def _learn(self, value: bytes) -> Callable[[bytes], ChangeEvent]:
        schema_id, _ = split_wire(value)
        project = projection(self._schemas(schema_id), self._migration.columns, self._migration.optional_columns)
        self._projections[value[:HEADER_BYTES]] = project
        return project


def place_of(record: Record) -> Place:
    """Return the partition that a record is from."""
    return Place(str(record.topic()), int(record.partition() or 0))


def origin_of(record: Record) -> tuple[Place, Offset]:
    """Return where a record stands, as `Overrides` name it."""
    return place_of(record), Offset(int(record.offset() or 0))


def _opened(place: Place, advances: dict[Place, Advance], following: Mapping[Place, Offset]) -> Advance | None:
    """Return the partition's move in the present sub-batch; None when the partition is not ours."""
    if place in advances:
        return advances[place]
    if place not in following:
        return None
    advances[place] = Advance(place, following[place], following[place])
    return advances[place]


def _pass(record: Record, advance: Advance | None) -> None:
    """Step over a record of another's partition, or one that tells of the end of ours.

    What lies before the end are marks of transactions, not events.
    """
    offset = record.offset()
    if advance is not None and offset is not None and offset > advance.next_offset:
        advance.next_offset = Offset(offset)


def _closed(sub_batch: SubBatch, end: int, advances: dict[Place, Advance], following: dict[Place, Offset]) -> SubBatch:
    sub_batch.end = end
    sub_batch.advances = [advance for advance in advances.values() if advance.next_offset != advance.expected]
    for advance in sub_batch.advances:
        following[advance.place] = advance.next_offset
    return sub_batch


def _count(advance: Advance, reason: str, number: int) -> None:
    if number:
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
