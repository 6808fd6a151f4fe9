"""Detects that a migration is complete: its whole input was read, and the database counts no remaining rows.

The end of the input is read after the producer has recorded that the snapshot (or the walk) is done. That record
commits with the last event, so any later end of a partition is after it. Once the ledger has passed those ends, by
whichever consumer, the remaining rows are counted, within a time limit and without locks. The flag is set in a
transaction that holds the ownership lock and checks that the ledger is still past those ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

import psycopg

from consumers.contract import counting
from consumers.contract.counting import Count, Counter
from consumers.contract.migration import Migration
from consumers.ledger import fence
from consumers.ledger.progress import LOCALLY_DURABLE, Ledger, Place
from consumers.ledger.target import Connection, Target
from infra.kafka import clients
from infra.kafka.topics import written_offsets
from infra.service import log
from infra.settings.model import Settings
from infra.state.positions import Positions, SourceState
from schemas.errors import HeadraceError, Unavailable
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn, Offset

_IDLE_SECONDS: Final = 3.0
_BUSY_SECONDS: Final = 60.0
"""How often to check while there are events: a check costs a few round trips."""
_COUNT_SHARE: Final = 20.0
"""Counting may use at most 1/20 of the server's time."""
COUNT_MS: Final = 15_000
"""The time limit of the first count; GitLab's statement_timeout. Each timeout doubles the next limit and the
pause before it."""
_LONGEST_COUNT_MS: Final = 240_000
"""A count blocks VACUUM from removing rows while it runs."""
_AGAIN_MS: Final = 500
"""The time limit of the second check, which holds the lock that a pause or a switchover waits for."""
_WAIT_SECONDS: Final = 0.1
_FIRST_PAUSE, _LAST_PAUSE = 60.0, 3600.0
"""The first and the longest pause after a failed count."""


class RowsLeft(HeadraceError):
    """Let the consumer catch up, check `headrace status` and `headrace dead-letters list`, then verify again."""


@dataclass(frozen=True)
class Verdict:
    """The result of a completion check.

    `pending`: the remaining rows are being counted. `error`: waiting will not complete the migration, because no event
    covers the remaining rows or they cannot be counted.
    """

    complete: bool
    said: str
    pending: bool = False
    error: HeadraceError | None = None


class Completion:
    """Checks periodically whether one run of a migration is complete, and sets the flag."""

    def __init__(
        self,
        settings: Settings,
        migration: Migration,
        database: str,
        topics: Sequence[str],
        ledger: Ledger,
        stopping: threading.Event | None = None,
    ) -> None:
        self._settings = settings
        self._migration = migration
        self._database = database
        self._topics = topics
        self._ledger = ledger
        self._stopping = stopping or threading.Event()
        self._continuous = migration.continuous or settings.migration(migration.name).continuous
        self._positions = Positions(settings.prefix, settings.kafka)
        self._counter = Counter(settings.database(database).address, migration)
        self._marks: Mapping[Place, Offset] | None = None
        self._counted_at: Lsn | None = None
        self._waits: str | None = None
        self._began = self._next = 0.0
        self._limit_ms = COUNT_MS
        self._failures = 0
        self._said = ""
        self._log = log.get(migration=migration.name)
        self.complete = False
        """Whether this consumer has found the flag set, or has set it."""

    def complete_already(self, connection: Connection) -> bool:
        """Return whether the current run is recorded as complete and has no remaining rows; called at the start.

        If rows remain, the record is cleared and the migration continues. Raises OwnershipMoved if the database does
        not own the gitlab schema in that case.
        """
        row = connection.execute(
            "SELECT completed_at IS NOT NULL FROM headrace.migrations WHERE name = %s", (self._migration.name,)
        ).fetchone()
        self.complete = bool(row and row[0]) and not self._continuous and self._nothing_left(connection)
        return self.complete

    def due(self, *, idle: bool) -> bool:
        """Whether a check is due."""
        if self.complete or self._continuous:
            return False
        if self._counter.under_way:
            return self._counter.ready
        now = time.monotonic()
        return now >= self._next if idle else now >= self._next + _BUSY_SECONDS

    def look(self, target: Target, run: int, *, wait: threading.Event | None = None, strict: bool = False) -> Verdict:
        """Check, and set the flag if no rows remain. Idempotent, also between concurrent consumers.

        Counting runs in the background: the verdict is `pending` until it ends, or the call waits for it until `wait`
        is set. `strict`, for a consumer that runs until completion, logs why the migration is not complete and raises
        the verdict's error. Raises OwnershipMoved if the database does not own the gitlab schema, with the flag
        unchanged, and BrokerUnavailable if Kafka does not answer.
        """
        verdict = self._looked(target, run)
        while wait is not None and verdict.pending and not wait.is_set():
            verdict = self._taken(target, run, _WAIT_SECONDS)
        if verdict.complete:
            self._log.info("migration complete", run=run)
        elif strict and not verdict.pending:
            if verdict.said != self._said:
                self._log.info("migration not complete yet", reason=verdict.said)
            self._said = verdict.said
            if verdict.error is not None:
                raise verdict.error
        return verdict

    def cancel(self) -> None:
        """Cancel a running count. Called from another thread when stopping takes too long."""
        self._counter.cancel()

    def close(self) -> None:
        """Cancel a running count without waiting for it."""
        self._counter.close()

    def _looked(self, target: Target, run: int) -> Verdict:
        if self._counter.under_way:
            return self._taken(target, run)
        self._next = time.monotonic() + _IDLE_SECONDS
        sources = clients.ask(self._positions.sources, self._stopping)
        self._waits = self._unread(sources)
        if self._waits is not None and not self._migration.remaining_is_all:
            return Verdict(False, self._waits)
        if self._waits is None:
            if self._marks is None:
                self._marks = clients.ask(self._ends, self._stopping)
            behind = target.ask(lambda connection: self._behind(connection, run))
            if behind:
                return Verdict(False, f"about {behind:,} events remain to be read")
        self._began = time.monotonic()
        self._counter.begin(self._limit_ms)
        return self._taken(target, run)

    def _nothing_left(self, connection: Connection) -> bool:
        """Whether no rows remain after a recorded completion; if some do, clear the record."""
        try:
            left = counting.count(connection, self._migration, limit_ms=COUNT_MS, estimate=False).exact
        except Exception as error:
            if isinstance(error, psycopg.Error) and connection.closed:
                raise
            self._log.warning("recorded as complete, not verified", detail=counting.failed(error))
            return True
        if left is None:
            said, hint = counting.too_slow(self._migration, COUNT_MS)
            self._log.warning("recorded as complete, not verified, continuing", reason=said, hint=hint)
            return False
        if left == 0:
            return True
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute(LOCALLY_DURABLE)
            fence.own(cursor, gitlab_schema=self._migration.gitlab_schema, database=self._database)
            cursor.execute(
                "UPDATE headrace.migrations SET completed_at = NULL WHERE name = %s", (self._migration.name,)
            )
        self._log.warning("recorded as complete, but rows remain, continuing", rows=left)
        return False

    def _unread(self, sources: Mapping[str, SourceState]) -> str | None:
        """Return what the producers still have to publish, None if nothing."""
        states = [
            snapshot
            for source in sources.values()
            for snapshot in source.snapshots.values()
            if snapshot.topic in self._topics
        ]
        for topic in set(self._topics) - {state.topic for state in states}:
            return f"no producer has recorded a snapshot for {topic} yet"
        for state in states:
            if not state.done:
                return (
                    f"the snapshot of {state.table} is not complete: {state.chunks_done} of about {state.chunks} chunks"
                )
        stream = sources[self._database].stream if self._database in sources else None
        if self._counted_at is not None and stream is not None and stream.confirmed_lsn < self._counted_at:
            return f"the producer of {self._database} has not yet reached the WAL position of the last count"
        return None

    def _ends(self) -> dict[Place, Offset]:
        return {
            Place(topic, partition): Offset(end)
            for topic in self._topics
            for partition, end in written_offsets(self._settings.kafka, topic).items()
        }

    def _behind(self, connection: Connection, run: int) -> int:
        """Return how many offsets the ledger is behind the recorded ends."""
        entries = self._ledger.read(connection, run)
        return sum(
            max(0, end - (entries[place].next_offset if place in entries else 0))
            for place, end in (self._marks or {}).items()
        )

    def _taken(self, target: Target, run: int, seconds: float = 0.0) -> Verdict:
        """Return the verdict of the count, `pending` while it runs."""
        try:
            found = self._counter.take(seconds)
        except Exception as error:
            return self._not_counted(error)
        if found is None:
            return Verdict(False, "the remaining rows are being counted", pending=True)
        now = time.monotonic()
        self._next = now + max(_IDLE_SECONDS, _COUNT_SHARE * (now - self._began))
        self._failures = 0
        if found.exact is None:
            return self._too_slow(found)
        if found.exact == 0:
            verdict = target.ask(lambda connection: self._conclude(connection, run))
            self.complete = verdict.complete
            return verdict
        if self._waits is not None:
            return Verdict(False, self._waits)
        # Events of recent writes may still be in transit: only a second count after all of them is final.
        said, final = f"{found.exact:,} rows are left to change", self._counted_at is not None
        self._counted_at, self._marks = found.at, None
        left = RowsLeft(f"{self._migration.name}: {said}, and no pending event covers them")
        return Verdict(False, said, error=left if final else None)

    def _too_slow(self, found: Count) -> Verdict:
        said, hint = counting.too_slow(self._migration, self._limit_ms)
        self._limit_ms = min(2 * self._limit_ms, _LONGEST_COUNT_MS)
        about = f" (about {found.rows:,} rows, by the planner's estimate)" if found.rows is not None else ""
        self._log.warning(
            "completion not verified",
            reason=f"{said}{about}",
            hint=hint,
            retry_in_seconds=round(self._next - time.monotonic()),
        )
        return Verdict(False, f"{said}{about}; {hint}")

    def _not_counted(self, error: Exception) -> Verdict:
        """Log that counting failed, and pause counting; applying continues."""
        pause = min(_LAST_PAUSE, _FIRST_PAUSE * 2.0**self._failures)
        self._failures = min(self._failures + 1, 10)
        said = counting.failed(error)
        lost = isinstance(error, Unavailable) or (isinstance(error, psycopg.OperationalError) and not error.sqlstate)
        if lost:
            pause = _IDLE_SECONDS
        self._next = time.monotonic() + pause
        self._log.warning("completion not verified", reason=said, retry_in_seconds=round(pause))
        if lost:
            return Verdict(False, said)
        whole = error if isinstance(error, HeadraceError) else HeadraceError(said, remedy="check `remaining`")
        return Verdict(False, said, error=whole)

    def _conclude(self, connection: Connection, run: int) -> Verdict:
        """Set the flag after a count of zero, if its conditions still hold under the lock."""
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute(LOCALLY_DURABLE)
            # Without a lock on the migration's row: two consumers would wait for each other to update it.
            fence.own(cursor, gitlab_schema=self._migration.gitlab_schema, database=self._database)
            # After a failover the ledger may be where it was before the count.
            if self._waits is None and (behind := self._behind(connection, run)):
                return Verdict(False, f"about {behind:,} events remain to be read")
            if counting.any_left(connection, self._migration, limit_ms=_AGAIN_MS):
                return Verdict(False, "rows were added since the last count")
            cursor.execute(
                "UPDATE headrace.migrations SET completed_at = coalesce(completed_at, now())"
                " WHERE name = %s AND run = %s AND NOT paused AND failed IS NULL",
                (self._migration.name, run),
            )
            if cursor.rowcount == 0:
                return Verdict(False, "the migration is paused or failed, or a replay started a new run")
        return Verdict(True, "complete")
