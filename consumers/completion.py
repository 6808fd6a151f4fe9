"""When a migration is complete: its whole input was read once, and the database counts nothing left.

The input's end is taken when the producer has recorded that the snapshot (or the walk) is done: that record commits
together with the last of its events, so the ends of the partitions at any later moment are behind them. Once the
ledger, whoever moves it, has passed those ends, the database is asked; the flag is set in the transaction that counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from consumers import contract_checks, fence
from consumers.ledger import Ledger, Place
from consumers.migration import Migration
from consumers.target import Connection, Target
from infra.positions import Positions, SourceState
from infra.settings import Settings
from infra.topics import written_offsets
from schemas.positions import Lsn, Offset, parse_lsn

_IDLE_SECONDS: Final = 3.0
_BUSY_SECONDS: Final = 60.0
"""How often to look while there is something to do: a look costs a few round trips."""
_COUNT_SHARE: Final = 20.0
"""A count of what is left may take one part in so many of a member's time."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far the migration is from complete. `final`: what is left is not going to come with events."""

    complete: bool
    said: str
    final: bool = False


class Completion:
    """Looks now and then whether one run of a migration is complete, and sets the flag."""

    def __init__(
        self, settings: Settings, migration: Migration, database: str, topics: Sequence[str], ledger: Ledger
    ) -> None:
        self._settings = settings
        self._migration = migration
        self._database = database
        self._topics = topics
        self._ledger = ledger
        self._continuous = migration.continuous or settings.migration(migration.name).continuous
        self._positions = Positions(settings.prefix, settings.kafka)
        self._marks: Mapping[Place, Offset] | None = None
        self._counted_at: Lsn | None = None
        self._next = 0.0
        self.complete = False
        """Whether this member has seen the flag set, or set it itself."""

    def complete_already(self, connection: Connection) -> bool:
        """Return whether the current run is complete on record; asked at the start, and after a replay began."""
        row = connection.execute(
            "SELECT completed_at IS NOT NULL FROM headrace.migrations WHERE name = %s", (self._migration.name,)
        ).fetchone()
        self.complete = bool(row and row[0]) and not self._continuous
        return self.complete

    def due(self, *, idle: bool) -> bool:
        """Whether to look now."""
        if self.complete or self._continuous:
            return False
        now = time.monotonic()
        return now >= self._next if idle else now >= self._next + _BUSY_SECONDS

    def look(self, target: Target, run: int) -> Verdict:
        """Look, and set the flag where nothing is left; a duplicate, or two members at once, set it once.

        Raises OwnershipMoved when the database does not own the gitlab schema; the flag stays as it is then.
        """
        self._next = time.monotonic() + _IDLE_SECONDS
        sources = self._positions.sources()
        if waits := self._unread(sources):
            if self._migration.remaining_is_all and target.ask(lambda it: self._conclude(it, run))[0] == 0:
                self.complete = True
                return Verdict(True, "complete")
            return Verdict(False, waits)
        if self._marks is None:
            self._marks = self._ends()
        entries = target.ask(lambda connection: self._ledger.read(connection, run))
        behind = sum(
            max(0, end - (entries[place].next_offset if place in entries else 0)) for place, end in self._marks.items()
        )
        if behind:
            return Verdict(False, f"about {behind:,} events are left to read")
        return self._count(target, run)

    def _unread(self, sources: Mapping[str, SourceState]) -> str | None:
        """Return what the producers have yet to publish, None when it is all there."""
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
                return f"{state.table} is not read to its end: {state.chunks_done} of about {state.chunks} chunks"
        stream = sources[self._database].stream if self._database in sources else None
        if self._counted_at is not None and stream is not None and stream.confirmed_lsn < self._counted_at:
            return f"the producer of {self._database} has not passed the time of the last count"
        return None

    def _ends(self) -> dict[Place, Offset]:
        return {
            Place(topic, partition): Offset(end)
            for topic in self._topics
            for partition, end in written_offsets(self._settings.kafka, topic).items()
        }

    def _count(self, target: Target, run: int) -> Verdict:
        started = time.monotonic()
        left, lsn = target.ask(lambda connection: self._conclude(connection, run))
        now = time.monotonic()
        self._next = now + max(_IDLE_SECONDS, _COUNT_SHARE * (now - started))
        if left == 0:
            self.complete = True
            return Verdict(True, "complete")
        # Rows that were written lately are still on their way: what counts is a second time, behind all of them.
        final = self._counted_at is not None
        self._counted_at, self._marks = lsn, None
        return Verdict(False, f"{left:,} rows are left to change", final)

    def _conclude(self, connection: Connection, run: int) -> tuple[int, Lsn]:
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL synchronous_commit = on")
            # Not the migration's own row: two members would wait for each other to write it.
            fence.own(cursor, gitlab_schema=self._migration.gitlab_schema, database=self._database)
            left = contract_checks.remaining(self._migration, cursor)
            if left == 0:
                cursor.execute(
                    "UPDATE headrace.migrations SET completed_at = now()"
                    " WHERE name = %s AND run = %s AND completed_at IS NULL",
                    (self._migration.name, run),
                )
            return left, parse_lsn(_scalar(cursor, "SELECT pg_current_wal_insert_lsn()::text"))


def _scalar(cursor: psycopg.Cursor[Any], query: str) -> str:
    row = cursor.execute(query).fetchone()
    assert row is not None
    return str(row[0])
