"""Plans transactions from consumed records: decodes, decides, and cuts the decisions into sub-batches. Does no I/O.

A sub-batch has a limited number of changes and any number of skipped events, from any partitions, each in offset order.
If it fails it can be planned again, smaller, from the same records: deciding is pure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from consumers.contract import contract_checks
from consumers.contract.decisions import TOMBSTONE, Change, DeadLetter, Decision, Skip
from consumers.contract.migration import Migration
from consumers.delivery.dead_letter_topic import NewDeadLetter
from consumers.delivery.topics import Schemas
from consumers.ledger.progress import Advance, Place
from consumers.planning.key_selection import NOT_SELECTED, Selection
from consumers.planning.prefilter import Record, sift
from schemas.codec.projection import projection
from schemas.codec.varints import encode_long
from schemas.errors import Malformed
from schemas.events import ChangeEvent
from schemas.positions import Offset
from schemas.wire import HEADER_BYTES, split_wire
from schemas.xid_snapshot import Hidden


@dataclass(slots=True)
class SubBatch:
    """The work of one transaction: records `start` to `end` of those planned, as changes and ledger advances.

    `origins` has the record of each change, and `xids` the low half of its transaction's id: None for a row read by a
    snapshot, and for an event from another database, whose ids are meaningless here.
    """

    start: int
    end: int
    advances: list[Advance] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    origins: list[Record] = field(default_factory=list)
    xids: list[int | None] = field(default_factory=list)
    dead_letters: list[NewDeadLetter] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The number of events that are not just counted."""
        return len(self.changes) + len(self.dead_letters)

    def waiting(self, hidden: Hidden) -> dict[Place, Waiting]:
        """Return where each partition has to stop because the event's transaction is `hidden`."""
        found: dict[Place, Waiting] = {}
        if hidden.any_of(self.xids):
            for record, xid in zip(self.origins, self.xids, strict=True):
                if (full := hidden.full(xid)) is not None:
                    place, offset = origin_of(record)
                    found.setdefault(place, Waiting(offset, full))
        return found


class Waiting(NamedTuple):
    """The first event of a partition that cannot be applied yet.

    `xid` is the 64-bit id of its transaction, which is not visible yet; None if another session locks its row.
    """

    offset: Offset
    xid: int | None


Judgement = tuple[Decision, int | None]
"""A migration's decision about an event, and the low half of its transaction's id, as in SubBatch.

A plain tuple, since one is created per event and a named tuple takes ten times as long.
"""

Overrides = Mapping[tuple[Place, Offset], Decision]


class Planner:
    """Plans the sub-batches of one migration; caches the projection of each schema."""

    def __init__(self, migration: Migration, schemas: Schemas, database: str) -> None:
        self._migration = migration
        self._database = database
        self._schemas = schemas
        self._projections: dict[bytes, Callable[[bytes], ChangeEvent]] = {}
        self._needles = _needles(migration)
        self.selection: Selection | None = None
        """The keys to which the current run is limited; None if it is not."""
        self._unmentioned = f"no {' or '.join(migration.mentions)} in it"

    def limit(self, selection: Mapping[str, Sequence[str]]) -> None:
        """Limit the plans to a run's selection from the ledger; an empty one selects every event."""
        self.selection = Selection(selection, self._schemas) if selection else None

    def judge(self, value: bytes) -> Judgement:
        """Return the decision about a record's value. An undecodable event becomes a dead letter."""
        try:
            project = self._projections.get(value[:HEADER_BYTES]) or self._learn(value)
        except Malformed as error:
            return DeadLetter(error.problem), None
        return self._judged(project, value)

    def _judged(self, project: Callable[[bytes], ChangeEvent], value: bytes) -> Judgement:
        try:
            event = project(value)
        except Malformed as error:
            return DeadLetter(error.problem), None
        try:
            decision = self._migration.decide(event)
        except Exception as error:
            raise contract_checks.undecided(self._migration, event, error) from error
        if type(decision) is Skip and type(decision.reason) is str:
            return decision, None  # the common case first; visibility does not matter, since nothing is written
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
        """Yield the sub-batches of `records`, each with at most `limit` changes; a callable is evaluated for each.

        `positions` has each partition's next offset: earlier records, and those of other partitions, are ignored.
        `overrides` replace decisions. Records may include ends of partitions.
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
        """Decide records of one partition and schema, and add the decisions to the sub-batch."""
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
                advance.dead_letters += 1
                sub_batch.dead_letters.append(NewDeadLetter(*origin_of(record), decision.reason, record.key(), value))
        advance.changes += len(sub_batch.changes) - changes

    def _meet(self, value: bytes | None) -> None:
        """Load the record's schema if it is new and readable."""
        if value is not None and value[:HEADER_BYTES] not in self._projections:
            with contextlib.suppress(Malformed):
                self._learn(value)

    def _learn(self, value: bytes) -> Callable[[bytes], ChangeEvent]:
        schema_id, _ = split_wire(value)
        project = projection(self._schemas(schema_id), self._migration.columns, self._migration.optional_columns)
        self._projections[value[:HEADER_BYTES]] = project
        return project


def place_of(record: Record) -> Place:
    """Return a record's partition."""
    return Place(str(record.topic()), int(record.partition() or 0))


def origin_of(record: Record) -> tuple[Place, Offset]:
    """Return a record's partition and offset, the key of `Overrides`."""
    return place_of(record), Offset(int(record.offset() or 0))


def _opened(place: Place, advances: dict[Place, Advance], following: Mapping[Place, Offset]) -> Advance | None:
    """Return the partition's advance in the current sub-batch; None if the partition is not assigned."""
    if place in advances:
        return advances[place]
    if place not in following:
        return None
    advances[place] = Advance(place, following[place], following[place])
    return advances[place]


def _pass(record: Record, advance: Advance | None) -> None:
    """Skip a record of an unassigned partition, or the end-of-partition marker of an assigned one.

    Offsets before the end are transaction markers, not events.
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
    """Return the byte strings of the prefilter; empty if every event is a candidate.

    An event whose stream omitted a column is a candidate too: `unchanged` has the column's name as an Avro string.
    """
    if not migration.mentions:
        return ()
    texts = [text.encode() for text in migration.mentions]
    names = [name.encode() for name in migration.columns]
    return (*texts, *(encode_long(len(name)) + name for name in names))
