"""Applies the records that were read: decides them and writes effects and ledger in one transaction.

A sub-batch that fails is handled by the error policy: retried, or bisected down to the change at fault. A partition
whose next event belongs to a transaction that is not visible yet is applied up to there, and waits.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Final

import psycopg
from confluent_kafka import Message

from consumers.contract import contract_checks
from consumers.contract.decisions import Change, DeadLetter
from consumers.delivery import dead_letter_rows
from consumers.ledger import fence
from consumers.ledger.error_policy import locked, reason_of, rule_for, timed_out
from consumers.ledger.progress import Cursor, LedgerMoved, Place
from consumers.ledger.samples import Samples
from consumers.pace.rates import Rate
from consumers.planning.effect_latency import EffectLatency
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
"""The lock timeout right after a wait for the same lock timed out."""


class Outcome(Enum):
    """The outcome of a sub-batch."""

    SETTLED = "settled"
    SET_ASIDE = "set aside"
    """Settled as far as it is visible; what was planned after it has to be planned again."""
    READ_AGAIN = "read again"
    """Not settled, or unknown: the position was reread from the ledger, or the consumer stops."""


class Applying:
    """Applies one consumer's events, in the run of its positions."""

    def __init__(self, parts: Parts, stopping: threading.Event, interruptions: Interruptions) -> None:
        self._migration = parts.migration
        self._database = parts.database
        self._planner = parts.planner
        self._ledger = parts.ledger
        self._group = parts.group
        self._target = parts.target
        self._ledger_positions = parts.positions
        self._dead_letter_writer = parts.dead_letter_writer
        self._pacing = parts.pacing
        self._breaker = parts.breaker
        self._stopping = stopping
        self._interruptions = interruptions
        self._ahead = Ahead("plan")
        self._failing = FailingRows(self._plan, self._try_out)
        self._rate = Rate()
        self._rest = 0.0
        self._latency = EffectLatency(parts.migration.name)
        self._traces = parts.traces
        self._samples = Samples(parts.migration.name)
        self._impatient = False
        self._generation = 0
        self.waiting = WaitingPartitions(parts.migration.name)
        self.totals = parts.totals

    @property
    def run(self) -> int:
        """The migration's current run."""
        return self._ledger_positions.run

    def process(self, records: Sequence[Message]) -> None:
        """Settle `records`. Raises what ends the consumer, with a correct ledger."""
        self._generation = self._group.generation
        while records:
            records = self._settle_batch(records)
        self._failing.end()

    def _settle_batch(self, records: Sequence[Message]) -> Sequence[Message]:
        """Settle `records`; return those to plan again, none if all are settled or will be read again."""
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
        """Apply a sub-batch of `records`, with retries."""
        attempt = looks = 0
        while not self._stopping.is_set():
            try:
                if sub_batch.dead_letters:
                    # Write dead letters only while this consumer may settle them.
                    with self._transaction(sub_batch):
                        pass
                    self._dead_letter_writer.keep(sub_batch.dead_letters, self.run)
                self._apply(sub_batch)
                if sub_batch.dead_letters:
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
        """Apply the error policy to a sub-batch that failed; None if the same transaction may be retried."""
        verdict, failure = self._failing.judge(sub_batch, error, attempt)
        if verdict is Verdict.AGAIN:
            return None
        if verdict is not Verdict.RECOVER:
            return self._split(sub_batch, records, error, gives_up=verdict is Verdict.DEAD_LETTER)
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
        """Settle what is possible of a sub-batch; each `waiting` partition waits from its first event that is not."""
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
        """Use a short lock timeout while bisecting a transaction that timed out waiting for a row lock."""
        before, self._impatient = self._impatient, wanted or self._impatient
        try:
            yield
        finally:
            self._impatient = before

    def bring_back(self) -> None:
        """Continue reading partitions that no longer have to wait."""
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
        """Plan in this thread while the prefetch thread is idle, so that no two threads call `decide` at once."""
        self._ahead.rest()
        return self._planner.plan(records, self._positions(), limit, overrides)

    def _positions(self) -> Mapping[Place, Offset]:
        """Return the next offset of each partition that does not wait."""
        # Only waiting ones may be ignored: records of any other partition must be settled, or they would be skipped.
        waiting = self._group.aside
        return {place: offset for place, offset in self._group.positions.items() if place not in waiting}

    @contextlib.contextmanager
    def _transaction(self, sub_batch: SubBatch) -> Iterator[Cursor]:
        """Open a transaction that may write the sub-batch and sees the transactions of its events."""
        with self._fenced() as (cursor, hidden):
            if self._group.generation != self._generation:
                # A rebalance during a wait for the database. The records are invalid, even if a partition is back.
                raise LedgerMoved("partitions came or went since these records were read")
            if waiting := sub_batch.waiting(hidden):
                raise NotVisibleYet(waiting)
            if self._impatient or self.waiting.locked([advance.place for advance in sub_batch.advances]):
                cursor.execute(f"SET LOCAL lock_timeout = {_IMPATIENT_MS}")
            yield cursor

    def _fenced(self, *, undone: bool = False) -> AbstractContextManager[tuple[Cursor, Hidden]]:
        return fence.transaction(
            self._target.connection,
            migration=self._migration.name,
            run=self.run,
            gitlab_schema=self._migration.gitlab_schema,
            database=self._database,
            undone=undone,
        )

    def _apply(self, sub_batch: SubBatch) -> None:
        """Run one transaction: ownership, effects, ledger. If it raises, nothing was written."""
        for advance in sub_batch.advances:
            advance.rate = self._rate.per_second
        started = time.monotonic()
        with self._transaction(sub_batch) as cursor:
            applied = contract_checks.apply(self._migration, cursor, sub_batch.changes) if sub_batch.changes else 0
            held = self._ledger.advance(cursor, self.run, sub_batch.advances, applied)
            contract_checks.require_held(self._migration, held)
            dead_letter_rows.record(cursor, self._migration.name, self.run, self._database, sub_batch.dead_letters)
            self._samples.take(cursor, self.run)
        took = time.monotonic() - started
        metrics.TRANSACTION_TIME.labels(self._migration.name).observe(took)
        self._latency.observe(sub_batch)
        if self._traces is not None:
            self._traces.applied(sub_batch, self.run, applied, took)
        self._rest = self._pacing.done(len(sub_batch.changes), took)
        self._failing.applied(applied)
        self._count(sub_batch, applied)

    def _try_out(self, change: Change, sub_batch: SubBatch) -> bool:
        """Run the transaction of `change` in place of `sub_batch`'s changes, and roll it back.

        Returns whether it changed something. Raises what the transaction raises.
        """
        with self._fenced(undone=True) as (cursor, _):
            applied = contract_checks.apply(self._migration, cursor, [change])
            self._ledger.advance(cursor, self.run, sub_batch.advances, 0)
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            return applied > 0

    def _count(self, sub_batch: SubBatch, applied: int) -> None:
        for advance in sub_batch.advances:
            self._group.positions[advance.place] = advance.next_offset
        self.waiting.moved([advance.place for advance in sub_batch.advances])
        events = sum(advance.events for advance in sub_batch.advances)
        self._rate.add(events)
        dead_letters = sum(advance.dead_letters for advance in sub_batch.advances)
        skipped = events - dead_letters - applied
        self.totals.transactions += 1
        self.totals.events += events
        self.totals.applied += applied
        self.totals.skipped += skipped
        self.totals.dead_letters += dead_letters
        metrics.APPLIED.labels(self._migration.name).inc(applied)
        metrics.SKIPPED.labels(self._migration.name).inc(skipped)
        metrics.DEAD_LETTERS.labels(self._migration.name).inc(dead_letters)

    def _split(self, sub_batch: SubBatch, records: Sequence[Message], error: Exception, *, gives_up: bool) -> Outcome:
        """Apply a rejected sub-batch in halves, or make a change that is rejected alone a dead letter."""
        overrides: Overrides = {}
        if gives_up and isinstance(error, psycopg.Error):
            overrides = {origin_of(sub_batch.origins[0]): DeadLetter(reason_of(error))}
        part = records[sub_batch.start : sub_batch.end]
        return self._piecemeal(part, max(1, len(sub_batch.changes) // 2), overrides)

    def _piecemeal(self, records: Sequence[Message], limit: int, overrides: Overrides | None = None) -> Outcome:
        """Settle `records` in sub-batches of at most `limit` changes."""
        outcome = Outcome.SETTLED
        while records:
            left: Sequence[Message] = ()
            for piece in self._plan(records, limit, overrides or {}):
                settled = self._settle(piece, records)
                if settled is Outcome.READ_AGAIN:
                    return settled
                if settled is Outcome.SET_ASIDE:
                    # The rest was planned for a partition that now waits.
                    outcome, left = settled, records[piece.end :]
                    break
            records = left
        return outcome

    def close(self) -> None:
        """Stop the prefetch thread."""
        self._ahead.close()


def _beyond(record: Message, waiting: Mapping[Place, Waiting]) -> bool:
    """Whether a record is at or after the first event of its partition that has to wait."""
    place, offset = origin_of(record)
    return place in waiting and offset >= waiting[place].offset
