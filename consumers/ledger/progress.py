"""The ledger: each partition's offset in the target database, advanced in the transaction of the effects.

Every advance is a compare-and-set: a consumer that expects another offset than the recorded one is a zombie or rereads
what was already applied, and its transaction rolls back.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.types.json import Jsonb

from consumers.ledger import fence
from consumers.ledger.versions import Declared, agree
from infra.postgres.parameters import storable
from schemas.errors import HeadraceError
from schemas.lazy_dataclass import dataclass
from schemas.positions import Offset

Connection = psycopg.Connection[Any]
Cursor = psycopg.Cursor[Any]


LOCALLY_DURABLE: Final = "SET LOCAL synchronous_commit = local"
"""For a commit that must survive a server crash while it holds locks that consumers or a pause need.

It does not wait for a synchronous standby, which may be down while the locks are held. A failover that loses the commit
loses everything that belongs to it, and it is repeated.
"""


def member_name() -> str:
    """Return `host:pid`, which identifies this process in the ledger and in its group."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


class LedgerMoved(HeadraceError):
    """Another consumer has this partition now; nothing was written, and the position is reread from the ledger."""


@dataclass(frozen=True)
class Entry:
    """The ledger's entry for one partition in one run."""

    place: Place
    next_offset: Offset
    topic_id: str


@dataclass()
class Advance:
    """One partition's advance in a transaction, from `expected` to `next_offset`, and its counts."""

    place: Place
    expected: Offset
    next_offset: Offset
    changes: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    dead_letters: int = 0
    rate: float = 0.0

    @property
    def events(self) -> int:
        """The number of events in between."""
        return self.changes + self.dead_letters + sum(self.skipped.values())


_ADVANCE: Final = """
    UPDATE headrace.progress p
       SET next_offset = a.next_offset, applied = p.applied + a.applied, skipped = p.skipped + a.skipped,
           dead_letters = p.dead_letters + a.dead_letters, rate = a.rate, member = %(member)s, updated_at = now(),
           skip_reasons = CASE WHEN a.reasons = '{}' THEN p.skip_reasons ELSE p.skip_reasons || (
               SELECT jsonb_object_agg(r.key, r.value::bigint + coalesce((p.skip_reasons ->> r.key)::bigint, 0))
                 FROM jsonb_each_text(a.reasons) r) END
      FROM unnest(%(topics)s::text[], %(partitions)s::int[], %(expected)s::bigint[], %(next)s::bigint[],
                  %(applied)s::bigint[], %(skipped)s::bigint[], %(dead_letters)s::bigint[], %(rates)s::float8[],
                  %(reasons)s::jsonb[])
           AS a(topic, partition, expected, next_offset, applied, skipped, dead_letters, rate, reasons)
     WHERE p.migration = %(migration)s AND p.run = %(run)s AND p.topic = a.topic AND p.partition = a.partition
       AND p.next_offset = a.expected
 RETURNING pg_catalog.current_setting('headrace.fenced', true)
"""


class Ledger:
    """The ledger of one migration."""

    def __init__(self, migration: str, gitlab_schema: str, member: str, declared: Declared | None = None) -> None:
        self._migration = migration
        self._gitlab_schema = gitlab_schema
        self._member = member
        self._declared = declared

    def begin(self, connection: Connection) -> int:
        """Return the current run; the first call starts run 1. Idempotent.

        Raises DeclarationChanged if the migration was started for another gitlab schema than it now declares, and
        OtherVersion if the run was started with another version or other options.
        """
        with connection.transaction():
            if (found := self._begun(connection)) is None:
                connection.execute(
                    "INSERT INTO headrace.migrations (name, gitlab_schema) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                    (self._migration, self._gitlab_schema),
                )
                found = self._begun(connection)
            assert found is not None
            run, gitlab_schema = found
            fence.require_declaration(self._migration, gitlab_schema, self._gitlab_schema)
            if self._declared is not None:
                agree(connection, self._migration, self._declared)
        return run

    def _begun(self, connection: Connection) -> tuple[int, str] | None:
        row = connection.execute(
            "SELECT run, gitlab_schema FROM headrace.migrations WHERE name = %s", (self._migration,)
        ).fetchone()
        return (int(row[0]), str(row[1])) if row is not None else None

    def selection(self, connection: Connection, run: int) -> dict[str, list[str]]:
        """Return the key columns and values that `run` is limited to; empty if it is not."""
        row = connection.execute(
            "SELECT selection FROM headrace.selections WHERE migration = %s AND run = %s", (self._migration, run)
        ).fetchone()
        return dict(row[0]) if row else {}

    def open(self, connection: Connection, run: int, places: Mapping[Place, str]) -> dict[Place, Entry]:
        """Return the position of `run` in each of `places`, whose values are the topics' ids.

        Called at each assignment. A partition new to the run is recorded at offset 0. Another call only changes the
        partition's recorded consumer.
        """
        ordered = sorted(places)
        with connection.transaction():
            connection.execute(
                "INSERT INTO headrace.progress (migration, run, topic, partition, topic_id, member)"
                " SELECT %s, %s, topic, partition, topic_id, %s"
                " FROM unnest(%s::text[], %s::int[], %s::text[]) AS places(topic, partition, topic_id)"
                " ON CONFLICT (migration, run, topic, partition) DO UPDATE SET member = excluded.member",
                (
                    self._migration,
                    run,
                    self._member,
                    [place.topic for place in ordered],
                    [place.partition for place in ordered],
                    [places[place] for place in ordered],
                ),
            )
            entries = self.read(connection, run)
        return {place: entries[place] for place in ordered}

    def read(self, connection: Connection, run: int) -> dict[Place, Entry]:
        """Return every partition of `run` that has a position."""
        found = connection.execute(
            "SELECT topic, partition, next_offset, topic_id FROM headrace.progress WHERE migration = %s AND run = %s",
            (self._migration, run),
        )
        return {
            Place(topic, partition): Entry(Place(topic, partition), Offset(next_offset), topic_id)
            for topic, partition, next_offset, topic_id in found
        }

    def advance(self, cursor: Cursor, run: int, advances: Sequence[Advance], applied: int) -> bool:
        """Advance every partition of `advances` in the cursor's transaction, after the effects.

        `applied` is how many rows the transaction changed. Returns whether the transaction is still the one that took
        the fence, since `apply` may have ended it. Raises LedgerMoved if a partition is not at the expected offset: the
        caller must roll back, including its writes.
        """
        shares = _shares(applied, [advance.changes for advance in advances])
        cursor.execute(
            _ADVANCE,
            {
                "migration": self._migration,
                "run": run,
                "member": self._member,
                "topics": [advance.place.topic for advance in advances],
                "partitions": [advance.place.partition for advance in advances],
                "expected": [advance.expected for advance in advances],
                "next": [advance.next_offset for advance in advances],
                "applied": shares,
                # A change whose row was already up to date was skipped by the guard.
                "skipped": [
                    sum(advance.skipped.values()) + advance.changes - share
                    for advance, share in zip(advances, shares, strict=True)
                ],
                "dead_letters": [advance.dead_letters for advance in advances],
                "rates": [advance.rate for advance in advances],
                "reasons": [
                    Jsonb({storable(cursor.connection, reason): number for reason, number in reasons.items()})
                    for reasons in map(_reasons, advances, shares)
                ],
            },
            prepare=True,
        )
        if cursor.rowcount != len(advances):
            raise LedgerMoved(
                f"{self._migration}: the ledger is not at "
                + ", ".join(f"{a.place.topic}/{a.place.partition}@{a.expected}" for a in advances)
            )
        return cursor.fetchone() != ("",)

    def leave(self, connection: Connection, run: int, places: Iterable[Place]) -> None:
        """Record that this consumer has left `places`, so that no rate is shown for them."""
        ordered = sorted(places)
        connection.execute(
            "UPDATE headrace.progress SET rate = 0 WHERE migration = %s AND run = %s AND member = %s"
            " AND (topic, partition) IN (SELECT * FROM unnest(%s::text[], %s::int[]))",
            (
                self._migration,
                run,
                self._member,
                [place.topic for place in ordered],
                [place.partition for place in ordered],
            ),
        )

    def wishes(self, database: str) -> Callable[[Connection], fence.Wishes]:
        """Return a function that queries `database` whether an operator paused the migration, and wants another pace.

        It raises OwnershipMoved once the database has given the schema away: otherwise a paused or idle consumer would
        not notice and would keep its partitions from the new owner's consumers. It raises NewerFormat once a newer
        headrace has upgraded the tables.
        """

        def asked(connection: Connection) -> fence.Wishes:
            with connection.cursor() as cursor:
                return fence.ask(
                    cursor, gitlab_schema=self._gitlab_schema, database=database, migration=self._migration
                )

        return asked


GUARDED: Final = "already up to date"
"""The skip reason of a change whose guard found nothing to do."""


def _reasons(advance: Advance, applied: int) -> dict[str, int]:
    guarded = advance.changes - applied
    return {**advance.skipped, GUARDED: guarded} if guarded else advance.skipped


def _shares(applied: int, changes: Sequence[int]) -> list[int]:
    """Distribute a transaction's count of changed rows over its partitions, at most its changes to each.

    A statement returns only the total of changed rows; the sum over the partitions is exact.
    """
    shares = []
    for count in changes:
        share = min(applied, count)
        shares.append(share)
        applied -= share
    if shares and applied:
        shares[0] += applied
    return shares
