"""Settles what was read: decides, applies with the ledger in one transaction, and says what has to be read again.

A sub-batch that fails is looked up in the error table: tried again, or done in pieces down to the one change at
fault. A partition whose next event is of a transaction that is not visible yet is settled up to there, and waits.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Final

import psycopg
from confluent_kafka import Message

from consumers.contract import contract_checks
from consumers.contract.decisions import Change, Park
from consumers.delivery import dead_letter_rows
from consumers.ledger import fence
from consumers.ledger.error_policy import locked, reason_of, rule_for, timed_out
from consumers.ledger.progress import Cursor, LedgerMoved, Place
from consumers.pace.rates import Rate
from consumers.planning.planner import Overrides, SubBatch, Waiting, origin_of
from consumers.planning.prefilter import Record
from consumers.runtime.failing_rows import FailingRows, Verdict
from consumers.runtime.interruptions import Interruptions
from consumers.runtime.parts import Parts
from consumers.runtime.prefetch import Ahead
from consumers.runtime.set_aside import SHORT_WAITS, NotVisibleYet, WaitingPartitions
from infra.service import metrics
from schemas.errors import HeadraceError
from schemas.positions import Offset
from schemas.xid_snapshot import Hidden

_IMPATIENT_MS: Final = 250
"""How long a lock is waited for that was not granted in the session's lock_timeout just before."""


class Outcome(Enum):
    """What became of a sub-batch."""

    SETTLED = "settled"
    SET_ASIDE = "set aside"
    """Settled as far as it is visible; what was planned behind it has to be planned anew."""
    READ_AGAIN = "read again"
    """Not settled, or not known: the position was read anew from the ledger, or the consumer stops."""


class Applying:
    """Applies one consumer's events, in the run that its positions are of."""

    def __init__(self, parts: Parts, stopping: threading.Event, interruptions: Interruptions) -> None:
        self._migration = parts.migration
        self._database = parts.database
        self._planner = parts.planner
        self._ledger = parts.ledger
        self._group = parts.group
        self._target = parts.target
        self._ledger_positions = parts.positions
        self._parking = parts.parking
        self._pacing = parts.pacing
        self._breaker = parts.breaker
        self._stopping = stopping
        self._interruptions = interruptions
        self._ahead = Ahead("plan")
        self._failing = FailingRows(self._plan, self._try_out)
        self._rates: dict[Place, Rate] = {}
        self._rest = 0.0
        self._impatient = False
        self._generation = 0
        self.waiting = WaitingPartitions(parts.migration.name)
        self.totals = parts.totals

    @property
    def run(self) -> int:
        """The migration's current run."""
        return self._ledger_positions.run

    def process(self, records: Sequence[Message]) -> None:
        """Settle `records`. Raises what ends the consumer; the ledger is right."""
        self._generation = self._group.generation
        while records:
            records = self._settle_batch(records)
        self._failing.end()

    def _settle_batch(self, records: Sequence[Message]) -> Sequence[Message]:
        """Settle what was read; return what has to be planned once more, nothing when all is done or read again."""
        plan = self._planner.plan(records, self._positions(), lambda: self._pacing.limit)
        with contextlib.closing(self._ahead.of(plan)) as sub_batches:
            for sub_batch in sub_batches:
                self._failing.begin(records)
                outcome = Outcome.READ_AGAIN if self._stopping.is_set() else self._settle(sub_batch, records)
                if outcome is Outcome.READ_AGAIN:
                    return ()
                if not self._interruptions.proceed(self._rest):
                    return ()
                if outcome is Outcome.SET_ASIDE:
                    return records[sub_batch.end :]
        return ()

    def _settle(self, sub_batch: SubBatch, records: Sequence[Message]) -> Outcome:
        """Carry out a sub-batch of `records`, whatever it takes."""
        attempt = looks = 0
        while not self._stopping.is_set():
            try:
                if sub_batch.parked:
                    # Only what this consumer may settle now is parked.
                    with self._transaction(sub_batch):
                        pass
                    self._parking.keep(sub_batch.parked, self.run)
                self._apply(sub_batch)
                if sub_batch.parked:
                    self._breaker.look(self.run)
            except NotVisibleYet as early:
                if looks == len(SHORT_WAITS):
                    return self._set_aside(sub_batch, records, early.waiting)
                self._stopping.wait(SHORT_WAITS[looks])
                looks += 1
            except (psycopg.Error, HeadraceError) as error:
                attempt += 1
                outcome = self._refused(sub_batch, records, error, attempt)
                if outcome is not None:
                    return outcome
            else:
                return Outcome.SETTLED
        return Outcome.READ_AGAIN

    def _refused(
        self, sub_batch: SubBatch, records: Sequence[Message], error: psycopg.Error | HeadraceError, attempt: int
    ) -> Outcome | None:
        """Do what the error table says of a sub-batch that failed; None: the same transaction may be tried again."""
        verdict, failure = self._failing.judge(sub_batch, error, attempt)
        if verdict is Verdict.AGAIN:
            return None
        if verdict is not Verdict.RECOVER:
            return self._split(sub_batch, records, error, park=verdict is Verdict.PARK)
        if locked(error) and len(sub_batch.changes) == 1:
            place, offset = origin_of(sub_batch.origins[0])
            return self._set_aside(sub_batch, records, {place: Waiting(offset, None)})
        if not self._interruptions.recover(failure, rule_for(failure), attempt):
            return Outcome.READ_AGAIN
        if timed_out(error) and len(sub_batch.changes) > 1:
            self._pacing.timed_out()
            part = records[sub_batch.start : sub_batch.end]
            with self._impatience(locked(error)):
                return self._piecemeal(part, min(self._pacing.limit, len(sub_batch.changes) // 2))
        return None

    def _set_aside(self, sub_batch: SubBatch, records: Sequence[Message], waiting: Mapping[Place, Waiting]) -> Outcome:
        """Settle what can be of a sub-batch; its `waiting` partitions wait, each from its first event that cannot."""
        part = [record for record in records[sub_batch.start : sub_batch.end] if not _beyond(record, waiting)]
        outcome = self._piecemeal(part, max(1, len(sub_batch.changes)))
        if outcome is Outcome.READ_AGAIN:
            return outcome
        ours = {place: each for place, each in waiting.items() if place in self._group.positions}
        for place in ours:
            self._group.set_aside(place, self._group.positions[place])
        self.waiting.add(ours)
        return Outcome.SET_ASIDE

    @contextlib.contextmanager
    def _impatience(self, wanted: bool) -> Iterator[None]:
        """Look for the row that is locked without waiting long for each part of a transaction that waited for it."""
        before, self._impatient = self._impatient, wanted or self._impatient
        try:
            yield
        finally:
            self._impatient = before

    def bring_back(self) -> None:
        """Read on in the partitions that need not wait any more."""
        self.waiting.keep_only(self._group.aside)
        if self.waiting.due():
            for place in self._target.ask(self.waiting.look):
                self._group.bring_back(place)

    def _plan(
        self,
        records: Sequence[Record],
        limit: int,
        overrides: Overrides = {},  # noqa: B006 - read only
    ) -> Iterator[SubBatch]:
        """Plan in this thread, while the one that plans ahead rests: no two threads decide at once."""
        self._ahead.rest()
        return self._planner.plan(records, self._positions(), limit, overrides)

    def _positions(self) -> Mapping[Place, Offset]:
        """Return the offset that each partition needs next, of those that do not wait."""
        # Those that are not read: what is read of any other has to be settled, or the ledger would step over it.
        waiting = self._group.aside
        return {place: offset for place, offset in self._group.positions.items() if place not in waiting}

    @contextlib.contextmanager
    def _transaction(self, sub_batch: SubBatch) -> Iterator[Cursor]:
        """Open a transaction that may write what the sub-batch asks for, and sees the transactions of its events."""
        with self._target.connection.transaction(), self._target.connection.cursor() as cursor:
            hidden = self._hold(cursor)
            if self._group.generation != self._generation:
                # While the database was waited for. What was read is of no use, also where a partition is back.
                raise LedgerMoved("partitions came or went since these records were read")
            if waiting := sub_batch.waiting(hidden):
                raise NotVisibleYet(waiting)
            if self._impatient or self.waiting.locked([advance.place for advance in sub_batch.advances]):
                cursor.execute(f"SET LOCAL lock_timeout = {_IMPATIENT_MS}")
            yield cursor

    def _hold(self, cursor: Cursor) -> Hidden:
        return fence.hold(
            cursor,
            migration=self._migration.name,
            run=self.run,
            gitlab_schema=self._migration.gitlab_schema,
            database=self._database,
        )

    def _apply(self, sub_batch: SubBatch) -> None:
        """Do one transaction: ownership, effects, ledger. Whatever is raised, nothing was written."""
        for advance in sub_batch.advances:
            advance.rate = self._rates.setdefault(advance.place, Rate()).per_second
        started = time.monotonic()
        with self._transaction(sub_batch) as cursor:
            applied = contract_checks.apply(self._migration, cursor, sub_batch.changes) if sub_batch.changes else 0
            held = self._ledger.advance(cursor, self.run, sub_batch.advances, applied)
            contract_checks.require_held(self._migration, held)
            dead_letter_rows.record(cursor, self._migration.name, self.run, self._database, sub_batch.parked)
        self._rest = self._pacing.done(len(sub_batch.changes), time.monotonic() - started)
        self._failing.applied(applied)
        self._count(sub_batch, applied)

    def _try_out(self, change: Change, sub_batch: SubBatch) -> bool:
        """Do the transaction of `change` in place of those of `sub_batch`, and roll it back; raises what it raises.

        Returns whether it changed something.
        """
        with self._target.connection.transaction(force_rollback=True), self._target.connection.cursor() as cursor:
            self._hold(cursor)
            applied = contract_checks.apply(self._migration, cursor, [change])
            self._ledger.advance(cursor, self.run, sub_batch.advances, 0)
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            return applied > 0

    def _count(self, sub_batch: SubBatch, applied: int) -> None:
        for advance in sub_batch.advances:
            self._group.positions[advance.place] = advance.next_offset
            self._rates[advance.place].add(advance.events)
        self.waiting.moved([advance.place for advance in sub_batch.advances])
        events = sum(advance.events for advance in sub_batch.advances)
        parked = sum(advance.parked for advance in sub_batch.advances)
        skipped = events - parked - applied
        self.totals.transactions += 1
        self.totals.events += events
        self.totals.applied += applied
        self.totals.skipped += skipped
        self.totals.parked += parked
        metrics.APPLIED.labels(self._migration.name).inc(applied)
        metrics.SKIPPED.labels(self._migration.name).inc(skipped)
        metrics.PARKED.labels(self._migration.name).inc(parked)

    def _split(self, sub_batch: SubBatch, records: Sequence[Message], error: Exception, *, park: bool) -> Outcome:
        """Do a refused sub-batch in halves, or park the change that is refused alone."""
        overrides: Overrides = {}
        if park and isinstance(error, psycopg.Error):
            overrides = {origin_of(sub_batch.origins[0]): Park(reason_of(error))}
        part = records[sub_batch.start : sub_batch.end]
        return self._piecemeal(part, max(1, len(sub_batch.changes) // 2), overrides)

    def _piecemeal(self, records: Sequence[Message], limit: int, overrides: Overrides | None = None) -> Outcome:
        """Settle `records` in pieces of at most `limit` changes."""
        outcome = Outcome.SETTLED
        while records:
            left: Sequence[Message] = ()
            for piece in self._plan(records, limit, overrides or {}):
                settled = self._settle(piece, records)
                if settled is Outcome.READ_AGAIN:
                    return settled
                if settled is Outcome.SET_ASIDE:
                    # What follows was planned for a partition that waits now.
                    outcome, left = settled, records[piece.end :]
                    break
            records = left
        return outcome

    def close(self) -> None:
        """End the thread that plans ahead."""
        self._ahead.close()


def _beyond(record: Message, waiting: Mapping[Place, Waiting]) -> bool:
    """Whether a record is not before the first event of its partition that has to wait."""
    place, offset = origin_of(record)
    return place in waiting and offset >= waiting[place].offset
