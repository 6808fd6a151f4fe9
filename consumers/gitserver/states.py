"""The recorded states of a move, their transitions, and the SQL that executes them.

One copy is authoritative at every moment: the one that readers and pushes are sent to. Until the cursor has passed a
name that is the old copy, then the new one; the other one is brought up to date from it, never the reverse.

    state     authority   meaning
    wanted    old         nothing was done yet, or the name is to be checked again
    copied    old         a complete copy is at the new home, and is kept up to date with the old one
    passed    new         the cursor has visibly passed the name; pushes to the old copy by readers with an older cursor
                          are carried over
    leaving   new         the old copy is out of reach, and waits for its deletion
    settled   new         one copy, at the new home (or the name's two homes are the same)
    failed    old         given up before readers were sent to the new home: counts as moved, only the old copy is left

TRANSITIONS lists the transitions. A move that cannot be finished ends with the authoritative copy in its place, and
without the other: before the cursor has passed, the move is undone (failed); afterwards it is completed (settled), and
the old copy is set aside unchanged, for an operator.

The disks determine which repositories are where; a state only records what was verified. So a consumer that finds a
state older than the disks continues from the disks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import psycopg

from consumers.routing.placement import PARTITIONS, normalised, partition_of
from schemas.lazy_dataclass import dataclass

Cursor = psycopg.Cursor[Any]

_MANY: Final = 1_000


class State(StrEnum):
    """See the module's docstring."""

    WANTED = "wanted"
    COPIED = "copied"
    PASSED = "passed"
    LEAVING = "leaving"
    SETTLED = "settled"
    FAILED = "failed"


TRANSITIONS: Final = {
    (State.WANTED, State.COPIED): "a complete copy, or the only one, is at the new home",
    (
        State.WANTED,
        State.SETTLED,
    ): "both homes are the same, or the name was passed before and the old copy was set aside",
    (State.WANTED, State.FAILED): "it could not be copied; the directory at the new home was set aside",
    (State.COPIED, State.PASSED): "the cursor has passed it, and that is committed (cursors.mark_passed)",
    (State.COPIED, State.COPIED): "the copy was brought up to date after a failed try",
    (State.COPIED, State.WANTED): "the copy is gone, or the old home has another repository now",
    (State.COPIED, State.FAILED): "the copy could not be brought up to date, and was removed",
    (State.COPIED, State.SETTLED): "the same after the name was passed before: the old copy was set aside",
    (State.PASSED, State.PASSED): "the old copy is in use",
    (State.PASSED, State.LEAVING): "no reader is sent to the old copy, and the new one is proven to be complete",
    (State.PASSED, State.SETTLED): "the old copy is gone, or could not be carried over and was set aside",
    (State.PASSED, State.WANTED): "the new copy is gone",
    (State.LEAVING, State.LEAVING): "the old copy is in use",
    (State.LEAVING, State.SETTLED): "the old copy was carried over, or could not be and was set aside",
    (State.LEAVING, State.WANTED): "the new copy is gone, or the old home has a repository again",
    (State.SETTLED, State.WANTED): "the old home has a repository again, or a new run or an operator wants it moved",
    (State.FAILED, State.WANTED): "a new run or an operator wants it moved",
}
"""(from, to) → its condition."""


@dataclass(frozen=True)
class Move:
    """One name's move; `raw` is the application's spelling of the name, as placement takes it."""

    name: str
    raw: str
    partition: int
    state: State
    tries: int
    may_leave: bool
    """For a passed move: whether no reader is sent to its old copy any more."""


@dataclass(frozen=True)
class Repository:
    """A cloned repository as the application has it now."""

    repo_id: int
    raw: str
    shard: str


_CLONED: Final = """
    SELECT r.id, r.name::text, g.shard_id::text
      FROM public.repo r JOIN public.gitserver_repos g ON g.repo_id = r.id
     WHERE r.id = ANY(%s::bigint[]) AND g.clone_status = 'cloned'
     ORDER BY r.id
"""
_UNNOTED: Final = f"""
    SELECT r.name::text
      FROM public.repo r JOIN public.gitserver_repos g ON g.repo_id = r.id
      LEFT JOIN headrace.rehash_repositories n ON n.repo_id = r.id AND n.raw = r.name::text
      LEFT JOIN headrace.rehash_moves m ON m.name = n.name
     WHERE g.clone_status = 'cloned' AND m.name IS NULL
     LIMIT {_MANY}
"""  # noqa: S608 - constants of this file
_KEEP_NAME: Final = """
    INSERT INTO headrace.rehash_repositories AS n (repo_id, raw, name)
    SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[]) ORDER BY 1
    ON CONFLICT (repo_id) DO UPDATE SET raw = excluded.raw, name = excluded.name
     WHERE (n.raw, n.name) IS DISTINCT FROM (excluded.raw, excluded.name)
"""
_WANT: Final = """
    INSERT INTO headrace.rehash_moves (name, raw, partition)
    SELECT * FROM unnest(%s::text[], %s::text[], %s::int[]) AS wanted(name, raw, partition) ORDER BY name
    ON CONFLICT (name) DO NOTHING
"""
# shard_id is a node's address, or its host name alone.
_AT_OLD_HOME: Final = """(m.from_node <> m.to_node AND (g.shard_id = m.from_node
    OR g.shard_id = regexp_replace(m.from_node, ':[0-9]+$', '')
       AND g.shard_id <> regexp_replace(m.to_node, ':[0-9]+$', '')))"""
# If the application records a repository at the old home, a process with an older cursor created it there again.
_WANT_AGAIN: Final = f"""
    WITH again AS (
        SELECT m.name FROM headrace.rehash_moves m
          JOIN unnest(%(names)s::text[], %(shards)s::text[]) AS seen(name, shard) ON seen.name = m.name
         WHERE m.state = 'settled'
           AND {_AT_OLD_HOME.replace("g.shard_id", "seen.shard")}
         ORDER BY m.name COLLATE "C" FOR UPDATE OF m
    )
    UPDATE headrace.rehash_moves m SET state = 'wanted', tries = 0, not_before = '-infinity', changed_at = now()
      FROM again WHERE m.name = again.name
"""  # noqa: S608 - constants of this file
_TO_LOOK_AT: Final = """
    SELECT m.name, m.raw, m.partition, m.state, m.tries, m.leave_at <= clock_timestamp() FROM headrace.rehash_moves m
     WHERE m.partition = %(partition)s AND m.state = %(state)s AND m.not_before <= clock_timestamp()
     ORDER BY m.name {order} LIMIT %(limit)s
"""
_IS_CLONED: Final = """
    SELECT EXISTS (
        SELECT FROM headrace.rehash_repositories n
          JOIN public.repo r ON r.id = n.repo_id AND r.name::text = n.raw
          JOIN public.gitserver_repos g ON g.repo_id = r.id AND g.clone_status = 'cloned'
         WHERE n.name = %s)
"""
_SET: Final = """
    UPDATE headrace.rehash_moves
       SET state = %(state)s, from_node = coalesce(%(from)s, from_node), to_node = coalesce(%(to)s, to_node),
           tries = 0, failure = %(failure)s, changed_at = clock_timestamp(),
           not_before = CASE WHEN %(after)s = 0 THEN '-infinity'
                             ELSE clock_timestamp() + make_interval(secs => %(after)s) END
     WHERE name = ANY(%(names)s::text[]) AND state = ANY(%(expected)s::text[])
"""
_FAIL: Final = """
    UPDATE headrace.rehash_moves
       SET tries = tries + 1, failure = %(failure)s, changed_at = clock_timestamp(),
           not_before = clock_timestamp() + make_interval(secs => %(pause)s * (tries + 1))
     WHERE name = %(name)s AND state = %(state)s
 RETURNING tries
"""
_REMARK: Final = """
    UPDATE headrace.rehash_moves SET remarks = concat_ws('; ', remarks, %(remark)s::text)
     WHERE name = %(name)s AND NOT coalesce(position(%(remark)s::text IN remarks) > 0, false)
"""
_WAIT_TO_LEAVE: Final = """
    UPDATE headrace.rehash_moves SET not_before = leave_at WHERE name = %s AND state = 'passed'
"""
_FORGET: Final = "DELETE FROM headrace.rehash_moves WHERE name = %s AND state = ANY(%s::text[])"

OPEN: Final = (State.WANTED, State.COPIED, State.PASSED, State.LEAVING)


def cloned(cursor: Cursor, keys: Iterable[int]) -> list[Repository]:
    """Return the rows with these ids that are cloned now."""
    return [Repository(*row) for row in cursor.execute(_CLONED, (sorted(set(keys)),))]


def unnoted(cursor: Cursor) -> dict[int, list[str]] | None:
    """Return partition → names of the cloned repositories whose events are still to come; None if there are many."""
    found = cursor.execute(_UNNOTED).fetchall()
    if len(found) >= _MANY:
        return None
    names: dict[int, list[str]] = {}
    for (raw,) in found:
        names.setdefault(partition_of(raw), []).append(normalised(raw))
    return names


def note(cursor: Cursor, repositories: Sequence[Repository]) -> int:
    """Record repositories as wanted; return how many are new, or are at their old home again. Idempotent."""
    if not repositories:
        return 0
    names = [normalised(each.raw) for each in repositories]
    cursor.execute(_KEEP_NAME, ([each.repo_id for each in repositories], [each.raw for each in repositories], names))
    raws = dict(zip(names, (each.raw for each in repositories), strict=True))
    cursor.execute(_WANT, (list(raws), list(raws.values()), [partition_of(raw) for raw in raws.values()]))
    new = cursor.rowcount
    cursor.execute(_WANT_AGAIN, {"names": names, "shards": [each.shard for each in repositories]})
    return new + cursor.rowcount


def moves(cursor: Cursor, partition: int, state: State, *, limit: int, descending: bool = False) -> list[Move]:
    """Return a partition's moves in this state that are due, in the order of their names."""
    query = _TO_LOOK_AT.format(order="DESC" if descending else "ASC")
    found = cursor.execute(query, {"partition": partition, "state": state, "limit": limit})
    return [Move(name, raw, at, State(state), tries, leave) for name, raw, at, state, tries, leave in found]


def is_cloned(cursor: Cursor, name: str) -> bool:
    """Return whether the application now has a cloned repository of this name."""
    row = cursor.execute(_IS_CLONED, (name,)).fetchone()
    return row == (True,)


def advance(
    cursor: Cursor,
    names: Sequence[str],
    state: State,
    *,
    expected: Sequence[State],
    homes: tuple[str, str] | None = None,
    after: float = 0.0,
    failure: str | None = None,
) -> int:
    """Change moves in one of the expected states to `state`; return how many were changed.

    `homes` are the old and the new node; the next step is due in `after` seconds; `failure` is why the move was given
    up.
    """
    assert all((each, state) in TRANSITIONS for each in expected)
    old, new = homes or (None, None)
    cursor.execute(
        _SET,
        {
            "names": list(names),
            "state": state,
            "expected": list(expected),
            "from": old,
            "to": new,
            "after": after,
            "failure": failure,
        },
    )
    return cursor.rowcount


def fail(cursor: Cursor, move: Move, reason: str, *, pause: float) -> int:
    """Record a failed try; return how many failed in a row, 0 if the move is in another state meanwhile."""
    parameters = {"name": move.name, "state": move.state, "failure": reason, "pause": pause}
    row = cursor.execute(_FAIL, parameters).fetchone()
    return 0 if row is None else int(row[0])


def remark(cursor: Cursor, name: str, text: str) -> None:
    """Record a remark for the operator, independent of the move's outcome. Idempotent."""
    cursor.execute(_REMARK, {"name": name, "remark": text})


def wait_to_leave(cursor: Cursor, name: str) -> None:
    """Delay a passed move until its old copy may be removed."""
    cursor.execute(_WAIT_TO_LEAVE, (name,))


def forget(cursor: Cursor, name: str) -> None:
    """Forget a name that the application no longer has, and whose move has not begun."""
    cursor.execute(_FORGET, (name, [State.WANTED]))


_IN_FLIGHT: Final = "m.state IN ('copied', 'passed', 'leaving')"
_REMAINING: Final = f"""
    SELECT (SELECT count(*)
              FROM public.repo r
              JOIN public.gitserver_repos g ON g.repo_id = r.id
              LEFT JOIN headrace.rehash_repositories n ON n.repo_id = r.id AND n.raw = r.name::text
              LEFT JOIN headrace.rehash_moves m ON m.name = n.name
             WHERE g.clone_status = 'cloned'
               AND (m.name IS NULL OR m.state NOT IN ('settled', 'failed') OR m.state = 'settled' AND {_AT_OLD_HOME}))
         + (SELECT count(*)
              FROM headrace.rehash_moves m
             WHERE {_IN_FLIGHT} AND NOT EXISTS (
                   SELECT FROM headrace.rehash_repositories n
                     JOIN public.repo r ON r.id = n.repo_id AND r.name::text = n.raw
                     JOIN public.gitserver_repos g ON g.repo_id = r.id AND g.clone_status = 'cloned'
                    WHERE n.name = m.name))
"""  # noqa: S608 - constants of this file
_ALL_CLONED: Final = "SELECT count(*) FROM public.gitserver_repos WHERE clone_status = 'cloned'"


def remaining(cursor: Cursor, direction: str) -> int:
    """Return how many repositories are not moved in this direction: all cloned ones if its run has not begun."""
    (known,) = cursor.execute("SELECT to_regclass('headrace.rehash_runs') IS NOT NULL").fetchone()  # type: ignore[misc]
    if known:
        row = cursor.execute("SELECT direction FROM headrace.rehash_runs").fetchone()
        known = row is not None and row[0] == direction
    row = cursor.execute(_REMAINING if known else _ALL_CLONED).fetchone()
    assert row is not None
    return int(row[0])


_OPEN_MOVES: Final = """
    SELECT partition, bool_or(not_before <= clock_timestamp()) FROM headrace.rehash_moves
     WHERE state NOT IN ('settled', 'failed') GROUP BY partition
"""
_AT_THE_END: Final = "SELECT partition FROM headrace.rehash_cursors WHERE {end}"


def counts(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """Return state → how many moves are in it."""
    return dict(connection.execute("SELECT state, count(*) FROM headrace.rehash_moves GROUP BY state").fetchall())


def to_visit(connection: psycopg.Connection[Any], forward: bool) -> tuple[list[int], bool]:
    """Return the partitions in which a step is due, and whether all are finished."""
    waiting: dict[int, bool] = dict(connection.execute(_OPEN_MOVES).fetchall())
    query = _AT_THE_END.format(end="finished" if forward else "NOT finished AND upto IS NULL")
    at_the_end = {partition for (partition,) in connection.execute(query)}
    short = set(range(PARTITIONS)) - at_the_end
    due = {partition for partition, is_due in waiting.items() if is_due} | (short - waiting.keys())
    return sorted(due), not waiting and not short


_GIVEN_UP: Final = """
    SELECT name, concat_ws('; ', failure, remarks), changed_at FROM headrace.rehash_moves
     WHERE state = 'failed' OR remarks IS NOT NULL ORDER BY name
"""
_TAKE_UP: Final = """
    UPDATE headrace.rehash_moves
       SET state = CASE WHEN state = 'failed' THEN 'wanted' ELSE state END, failure = NULL, remarks = NULL, tries = 0,
           not_before = '-infinity', changed_at = clock_timestamp()
     WHERE name = ANY(%s::text[]) AND (state = 'failed' OR remarks IS NOT NULL)
"""


_TOLD: Final = """
    SELECT count(*) FILTER (WHERE state = 'failed'), count(*) FILTER (WHERE state <> 'failed')
      FROM headrace.rehash_moves WHERE state = 'failed' OR remarks IS NOT NULL
"""


def count_told(cursor: Cursor) -> tuple[int, int]:
    """Return how many moves were given up, and how many others have remarks."""
    row = cursor.execute(_TOLD).fetchone()
    assert row is not None
    return (row[0], row[1])


def given_up(cursor: Cursor) -> list[tuple[str, str, datetime]]:
    """Return the failed moves, and the settled ones with remarks: name, reason, time."""
    return cursor.execute(_GIVEN_UP).fetchall()


def take_up(cursor: Cursor, names: Sequence[str]) -> int:
    """Try these moves again, and clear their remarks; return how many there were."""
    return cursor.execute(_TAKE_UP, (list(names),)).rowcount


_NAME_HASH: Final = "encode(sha256(convert_to(name, 'UTF8')), 'hex')"
_NOT_OPEN: Final = f"""
    SELECT hash FROM unnest(%s::text[]) AS lying(hash)
    EXCEPT SELECT {_NAME_HASH} FROM headrace.rehash_moves WHERE state NOT IN ('settled', 'failed')
"""  # noqa: S608 - constants of this file
_WANT_HASHES: Final = f"""
    UPDATE headrace.rehash_moves SET state = 'wanted', tries = 0, not_before = '-infinity', changed_at = now()
     WHERE {_NAME_HASH} = ANY(%s::text[]) AND state IN ('settled', 'failed')
"""  # noqa: S608 - constants of this file


def not_open(cursor: Cursor, hashes: Collection[str]) -> set[str]:
    """Return the names' hashes (`repositories.storage`) that no open move has."""
    return {one for (one,) in cursor.execute(_NOT_OPEN, (list(hashes),))} if hashes else set()


def want_again(cursor: Cursor, hashes: Collection[str]) -> None:
    """Mark the moves of these names' hashes as wanted again."""
    if hashes:
        cursor.execute(_WANT_HASHES, (list(hashes),))
