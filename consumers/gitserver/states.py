"""How far the move of a name is, on record: the states, what leads from one to the next, and the SQL that does it.

One copy is the truth at every moment: the one that readers and pushes are sent to. Until the cursor has passed a name
that is the old one, from then on the new one; the other follows it, and never the other way round.

    state     the truth   and what is so
    wanted    old         nothing was done yet, or it is to be looked at again
    copied    old         a whole copy lies at the new home, and is brought up to the old one
    passed    new         the cursor has passed it for all to see; what readers that learn it late still push to the old
                          copy is carried over
    leaving   new         the old copy is out of reach, and waits for its deletion
    settled   new         one copy, at the new home (or the name's two homes are the same)
    failed    old         given up before readers were sent on: it counts as moved, and its only copy is where it was

TRANSITIONS has what leads from one to another. A move that cannot be finished ends with the copy that is the truth in
its place, and nothing in the other: before the cursor has passed it goes back (failed), afterwards it goes on
(settled), and the old copy is set aside as it is, for an operator.

Which repositories lie where the disks say; a state only says what has been made sure of. So a member that finds a state
behind what it sees goes on from what it sees.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import psycopg

from consumers.routing.placement import PARTITIONS, normalised, partition_of

Cursor = psycopg.Cursor[Any]

_MANY: Final = 1_000


class State(StrEnum):
    """See above."""

    WANTED = "wanted"
    COPIED = "copied"
    PASSED = "passed"
    LEAVING = "leaving"
    SETTLED = "settled"
    FAILED = "failed"


TRANSITIONS: Final = {
    (State.WANTED, State.COPIED): "a whole copy lies at the new home, or the only one does",
    (State.WANTED, State.SETTLED): "both homes are the same; or it was passed before, and the old copy was set aside",
    (State.WANTED, State.FAILED): "it could not be copied; what lay at the new home was set aside",
    (State.COPIED, State.PASSED): "the cursor has passed it, and that is committed (cursors.mark_passed)",
    (State.COPIED, State.COPIED): "it could be brought up to the old one after a try that failed",
    (State.COPIED, State.WANTED): "the copy has gone, or is of another repository than lies at the old home now",
    (State.COPIED, State.FAILED): "the copy could not be brought up to the old one, and was removed",
    (State.COPIED, State.SETTLED): "the same when it was passed before: the old copy was set aside",
    (State.PASSED, State.PASSED): "something is at work in the old copy: later",
    (State.PASSED, State.LEAVING): "no reader is sent to the old copy any more, and the new one is proven to be whole",
    (State.PASSED, State.SETTLED): "the old copy has gone, or could not be carried over and was set aside",
    (State.PASSED, State.WANTED): "the new copy has gone",
    (State.LEAVING, State.LEAVING): "something is at work in the old copy: later",
    (State.LEAVING, State.SETTLED): "the old copy gave all that it had, or could not and was set aside",
    (State.LEAVING, State.WANTED): "the new copy has gone, or somebody made one at the old home again",
    (State.SETTLED, State.WANTED): "the old home got one again, a new run goes the other way, an operator says so",
    (State.FAILED, State.WANTED): "a new run, or an operator says so",
}
"""From, to → when."""


@dataclass(frozen=True, slots=True)
class Move:
    """One name's move; `raw` is how the application spells the name, which is what placement takes."""

    name: str
    raw: str
    partition: int
    state: State
    tries: int
    may_leave: bool
    """Whether no reader is sent to its old copy any more, of one that is passed."""


@dataclass(frozen=True, slots=True)
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
# shard_id has a node's address, or the host's name alone.
_AT_OLD_HOME: Final = """(m.from_node <> m.to_node AND (g.shard_id = m.from_node
    OR g.shard_id = regexp_replace(m.from_node, ':[0-9]+$', '')
       AND g.shard_id <> regexp_replace(m.to_node, ':[0-9]+$', '')))"""
# A repository of which the application says that it lies at the old home is there again: somebody made it whose cursor
# was older.
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
    """Return those of the rows with these ids that are cloned, as they are now."""
    return [Repository(*row) for row in cursor.execute(_CLONED, (sorted(set(keys)),))]


def unnoted(cursor: Cursor) -> dict[int, list[str]] | None:
    """Return partition → names of the cloned repositories whose events have not come yet; None when they are many."""
    found = cursor.execute(_UNNOTED).fetchall()
    if len(found) >= _MANY:
        return None
    names: dict[int, list[str]] = {}
    for (raw,) in found:
        names.setdefault(partition_of(raw), []).append(normalised(raw))
    return names


def note(cursor: Cursor, repositories: Sequence[Repository]) -> int:
    """Put repositories on record as wanted; return how many are new, or are at their old home again.

    A duplicate changes nothing.
    """
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
    """Return moves of a partition in this state that are due, in the order of their names."""
    query = _TO_LOOK_AT.format(order="DESC" if descending else "ASC")
    found = cursor.execute(query, {"partition": partition, "state": state, "limit": limit})
    return [Move(name, raw, at, State(state), tries, leave) for name, raw, at, state, tries, leave in found]


def is_cloned(cursor: Cursor, name: str) -> bool:
    """Return whether the application has a cloned repository of this name now."""
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
    """Bring moves into `state`, where they are in one of those expected; return how many were.

    `homes` are the old and the new node; `after` is how many seconds from now the next step is due; `failure` is why it
    was given up.
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
    """Note a failed try; return how many have failed in a row, 0 when the move is in another state meanwhile."""
    parameters = {"name": move.name, "state": move.state, "failure": reason, "pause": pause}
    row = cursor.execute(_FAIL, parameters).fetchone()
    return 0 if row is None else int(row[0])


def remark(cursor: Cursor, name: str, text: str) -> None:
    """Note something that an operator has to know, whatever becomes of the move; a duplicate changes nothing."""
    cursor.execute(_REMARK, {"name": name, "remark": text})


def wait_to_leave(cursor: Cursor, name: str) -> None:
    """Have a passed move wait until its old copy may go."""
    cursor.execute(_WAIT_TO_LEAVE, (name,))


def forget(cursor: Cursor, name: str) -> None:
    """Strike a name that the application does not have any more, and that nothing was done about."""
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
    """Return how many repositories are not moved in this direction: all cloned ones before its run began."""
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
    """Return the partitions in which something is due, and whether none has anything left to do."""
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
    """Return how many moves were given up, and how many others have something to report."""
    row = cursor.execute(_TOLD).fetchone()
    assert row is not None
    return (row[0], row[1])


def given_up(cursor: Cursor) -> list[tuple[str, str, datetime]]:
    """Return what failed for good, and what is settled with something to tell: name, reason, since when."""
    return cursor.execute(_GIVEN_UP).fetchall()


def take_up(cursor: Cursor, names: Sequence[str]) -> int:
    """Have these tried again, and strike what there was to tell; return how many there were."""
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
    """Return those of the names' hashes (`repositories.storage`) that no open move has."""
    return {one for (one,) in cursor.execute(_NOT_OPEN, (list(hashes),))} if hashes else set()


def want_again(cursor: Cursor, hashes: Collection[str]) -> None:
    """Have the moves of these names' hashes looked at again."""
    if hashes:
        cursor.execute(_WANT_HASHES, (list(hashes),))
