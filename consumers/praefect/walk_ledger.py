"""Records how much of each storage walk was applied, in tables of the migration that reads the walks.

The partitions of the walks' topic are read by different consumers, so each records what it has applied in the database,
in the same transaction. A walk was applied as a whole once all its ends were reached and as many repositories were
applied as they announce: neither a dead letter nor a repository that a replay left out counts as applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

import psycopg

Cursor = psycopg.Cursor[Any]

TABLES: Final = """
-- How many repositories of each storage walk were applied, spread over several rows, so that consumers do not wait for
-- each other.
CREATE TABLE IF NOT EXISTS headrace.walk_counts (
    virtual_storage text NOT NULL,
    storage text NOT NULL,
    walk_id bigint NOT NULL,
    run integer NOT NULL,
    share integer NOT NULL,
    repositories bigint NOT NULL,
    PRIMARY KEY (virtual_storage, storage, walk_id, run, share)
) WITH (fillfactor = 50);

-- The ends of storage walks that were reached, one in each partition, with the counts of the whole walk.
CREATE TABLE IF NOT EXISTS headrace.walk_ends (
    virtual_storage text NOT NULL,
    storage text NOT NULL,
    walk_id bigint NOT NULL,
    run integer NOT NULL,
    partition integer NOT NULL,
    partitions integer NOT NULL,
    repositories bigint NOT NULL,
    problems bigint NOT NULL,
    complete boolean NOT NULL,
    begun_ms bigint NOT NULL,
    PRIMARY KEY (virtual_storage, storage, walk_id, run, partition)
);
"""
"""Dropping them only forgets the walks: the next walk is counted from zero."""

_SHARES: Final = 16


class Walk(NamedTuple):
    """One walk of a storage."""

    virtual_storage: str
    storage: str
    walk_id: int


class End(NamedTuple):
    """The end of a walk in one partition; `begun_ms` is when the walk began, in milliseconds since 1970."""

    walk: Walk
    partition: int
    partitions: int
    repositories: int
    problems: int
    complete: bool
    begun_ms: int


class Standing(NamedTuple):
    """How much of a walk was applied in a run; `partitions` is 0 until an end is reached."""

    ends: int
    partitions: int
    promised: int
    problems: int
    complete: bool
    applied: int

    @property
    def ended(self) -> bool:
        """Whether the walk was read to its end in every partition."""
        return 0 < self.partitions <= self.ends


def count(cursor: Cursor, run: int, applied: Mapping[Walk, int]) -> None:
    """Add repositories that were applied, in the transaction that applied them."""
    for walk, repositories in sorted(applied.items()):
        cursor.execute(
            "INSERT INTO headrace.walk_counts AS c"
            " VALUES (%s, %s, %s, %s, pg_backend_pid() %% %s, %s)"
            " ON CONFLICT (virtual_storage, storage, walk_id, run, share)"
            " DO UPDATE SET repositories = c.repositories + excluded.repositories",
            (*walk, run, _SHARES, repositories),
        )


def reach(cursor: Cursor, run: int, end: End) -> None:
    """Record the end of a walk in a partition, in the transaction that applied all before it. Idempotent."""
    cursor.execute(
        "INSERT INTO headrace.walk_ends VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (virtual_storage, storage, walk_id, run, partition) DO NOTHING",
        (*end.walk, run, *end[1:]),
    )


def alone(cursor: Cursor, virtual_storage: str) -> None:
    """Lock the ends of the virtual storage's walks against other consumers until the transaction ends.

    Otherwise two consumers that reach the last two ends at the same time would each miss the other's.
    """
    cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"headrace walk {virtual_storage}",))


def standing(cursor: Cursor, run: int, walk: Walk) -> Standing:
    """Return how much of a walk was applied, including this transaction."""
    cursor.execute(
        "SELECT count(*), coalesce(max(partitions), 0), coalesce(max(repositories), 0), coalesce(max(problems), 0),"
        " coalesce(bool_and(complete), false), (SELECT coalesce(sum(repositories), 0)::bigint FROM headrace.walk_counts"
        " WHERE (virtual_storage, storage, walk_id, run) = (%(virtual_storage)s, %(storage)s, %(walk_id)s, %(run)s))"
        " FROM headrace.walk_ends"
        " WHERE (virtual_storage, storage, walk_id, run) = (%(virtual_storage)s, %(storage)s, %(walk_id)s, %(run)s)",
        {**walk._asdict(), "run": run},
    )
    row = cursor.fetchone()
    assert row is not None
    return Standing(*row)


def forget_before(cursor: Cursor, walk: Walk) -> None:
    """Forget the storage's walks before `walk`, which was read to its end: no more of their events will come."""
    for table in ("walk_counts", "walk_ends"):
        cursor.execute(
            f"DELETE FROM headrace.{table} WHERE virtual_storage = %s AND storage = %s AND walk_id < %s",  # noqa: S608
            walk,
        )


class Latest(NamedTuple):
    """A storage's last complete walk, which read every directory, and its start."""

    walk_id: int
    begun_ms: int


def latest(cursor: Cursor) -> dict[tuple[str, str], Latest]:
    """Return (virtual storage, storage) → its last complete walk, of which at least one end was reached.

    A repository that an older walk found comes again in this one if it still exists. So this walk supersedes older ones
    as soon as one of its ends is known.
    """
    cursor.execute(
        "SELECT DISTINCT ON (virtual_storage, storage) virtual_storage, storage, walk_id, begun_ms"
        " FROM headrace.walk_ends WHERE complete ORDER BY virtual_storage, storage, begun_ms DESC, walk_id DESC"
    )
    return {(virtual_storage, storage): Latest(*rest) for virtual_storage, storage, *rest in cursor}


def last(cursor: Cursor) -> list[tuple[Walk, int, datetime]]:
    """Return each storage's last walk of which an end was reached, its run, and its start."""
    cursor.execute(
        "SELECT DISTINCT ON (virtual_storage, storage) virtual_storage, storage, walk_id, run,"
        " to_timestamp(begun_ms / 1000.0) FROM headrace.walk_ends"
        " ORDER BY virtual_storage, storage, run DESC, begun_ms DESC, walk_id DESC"
    )
    return [(Walk(*walk), run, begun) for *walk, run, begun in cursor]


def walked(cursor: Cursor) -> set[str]:
    """Return the virtual storages of which a walk was applied at least in part; none if the tables do not exist."""
    cursor.execute("SELECT to_regclass('headrace.walk_counts'), to_regclass('headrace.walk_ends')")
    if None in (cursor.fetchone() or ()):
        return set()
    cursor.execute(
        "SELECT virtual_storage FROM headrace.walk_counts UNION SELECT virtual_storage FROM headrace.walk_ends"
    )
    return {name for (name,) in cursor}
