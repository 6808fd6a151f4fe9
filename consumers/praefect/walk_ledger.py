"""How much of each storage walk was applied: what a migration of storage walks knows of them, in its own tables.

The partitions of the walks' topic are read by different members, so what each has applied is kept in the database, in
the transaction that applied it. A walk was applied as a whole when all its ends are there and as many repositories
were applied as they promise: neither one that was parked, nor one that a replay left out, is taken for applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

import psycopg

Cursor = psycopg.Cursor[Any]

TABLES: Final = """
-- Of each storage walk, how many repositories were applied: a row for some of the members, so that they do not wait
-- for each other.
CREATE TABLE IF NOT EXISTS headrace.walk_counts (
    virtual_storage text NOT NULL,
    storage text NOT NULL,
    walk_id bigint NOT NULL,
    run integer NOT NULL,
    share integer NOT NULL,
    repositories bigint NOT NULL,
    PRIMARY KEY (virtual_storage, storage, walk_id, run, share)
) WITH (fillfactor = 50);

-- The ends of storage walks that were reached, one in each partition, with what they say of the whole walk.
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
"""Dropping them forgets the walks, and nothing else: the next walk is counted anew."""

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
    """What was applied of a walk in a run; `partitions` is 0 as long as no end was reached."""

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
    """Note the end of a walk in a partition, in the transaction that applied all before it; a duplicate is the same."""
    cursor.execute(
        "INSERT INTO headrace.walk_ends VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (virtual_storage, storage, walk_id, run, partition) DO NOTHING",
        (*end.walk, run, *end[1:]),
    )


def alone(cursor: Cursor, virtual_storage: str) -> None:
    """Wait until no other member is at the end of a walk of the virtual storage, until the transaction ends.

    Two members that reach the last two ends at once would otherwise each miss the other's.
    """
    cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"headrace walk {virtual_storage}",))


def standing(cursor: Cursor, run: int, walk: Walk) -> Standing:
    """Return what was applied of a walk, with what this transaction did."""
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
    """Forget the walks of the storage before `walk`, which was read to its end: nothing of theirs is to come."""
    for table in ("walk_counts", "walk_ends"):
        cursor.execute(
            f"DELETE FROM headrace.{table} WHERE virtual_storage = %s AND storage = %s AND walk_id < %s",  # noqa: S608
            walk,
        )


class Latest(NamedTuple):
    """The last walk of a storage that is known to have read every directory, and when it began."""

    walk_id: int
    begun_ms: int


def latest(cursor: Cursor) -> dict[tuple[str, str], Latest]:
    """Return (virtual storage, storage) → its last complete walk, one of whose ends was reached at least.

    What an older walk found, and this one found again, comes again behind it; what does not is there no more. So it
    has the last word already when a single end of it is known.
    """
    cursor.execute(
        "SELECT DISTINCT ON (virtual_storage, storage) virtual_storage, storage, walk_id, begun_ms"
        " FROM headrace.walk_ends WHERE complete ORDER BY virtual_storage, storage, begun_ms DESC, walk_id DESC"
    )
    return {(virtual_storage, storage): Latest(*rest) for virtual_storage, storage, *rest in cursor}


def last(cursor: Cursor) -> list[tuple[Walk, int, datetime]]:
    """Return of each storage the last walk of which an end was reached, in which run, and when the walk began."""
    cursor.execute(
        "SELECT DISTINCT ON (virtual_storage, storage) virtual_storage, storage, walk_id, run,"
        " to_timestamp(begun_ms / 1000.0) FROM headrace.walk_ends"
        " ORDER BY virtual_storage, storage, run DESC, begun_ms DESC, walk_id DESC"
    )
    return [(Walk(*walk), run, begun) for *walk, run, begun in cursor]


def walked(cursor: Cursor) -> set[str]:
    """Return the virtual storages of which a walk was applied, in part at least; none while there are no tables."""
    cursor.execute("SELECT to_regclass('headrace.walk_counts'), to_regclass('headrace.walk_ends')")
    if None in (cursor.fetchone() or ()):
        return set()
    cursor.execute(
        "SELECT virtual_storage FROM headrace.walk_counts UNION SELECT virtual_storage FROM headrace.walk_ends"
    )
    return {name for (name,) in cursor}
