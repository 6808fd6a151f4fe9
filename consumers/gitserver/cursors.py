"""Moves the routing cursor of each partition: it passes a name once a complete copy is at the name's new home.

Forward it rises, and every cloned repository up to it has been copied to its rendezvous home; in reverse it falls, and
every cloned repository above it has been copied back to its md5 home. The transaction that moves the cursor also
queries for names that block it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

import psycopg

Connection = psycopg.Connection[Any]
Cursor = psycopg.Cursor[Any]


class Direction(StrEnum):
    """The direction of the moves."""

    FORWARD = "forward"
    """From their md5 homes to their rendezvous homes."""
    REVERSE = "reverse"
    """Back."""


_OPENED: Final = "INSERT INTO headrace.rehash_cursors (partition) VALUES (%s) ON CONFLICT DO NOTHING"
_LOCKED: Final = "SELECT upto, finished FROM headrace.rehash_cursors WHERE partition = %s FOR UPDATE"
# Names ahead of the cursor that are cloned and not copied, or whose copy is not up to date.
_IN_THE_WAY: Final = """
    SELECT {first}(m.name)
      FROM headrace.rehash_moves m
      JOIN headrace.rehash_repositories n ON n.name = m.name
      JOIN public.repo r ON r.id = n.repo_id AND r.name::text = n.raw
      JOIN public.gitserver_repos g ON g.repo_id = r.id AND g.clone_status = 'cloned'
     WHERE m.partition = %(partition)s AND {ahead}
       AND (m.state = 'wanted' OR m.state = 'copied' AND m.tries > 0)
"""
_BEFORE: Final = """
    SELECT max(name) FROM headrace.rehash_moves WHERE partition = %s AND name < %s COLLATE "C" AND state <> 'wanted'
"""
_MOVE: Final = """
    UPDATE headrace.rehash_cursors SET upto = %(upto)s, finished = %(finished)s, changed_at = now()
     WHERE partition = %(partition)s AND (upto IS DISTINCT FROM %(upto)s OR finished <> %(finished)s)
"""
# Updates the application's record of a repository's node only if it has the old node; see states.py for its forms.
_RECORD: Final = """
    WITH recorded AS (
        SELECT g.repo_id,
               CASE WHEN g.shard_id = m.from_node THEN m.to_node
                    ELSE regexp_replace(m.to_node, ':[0-9]+$', '') END AS shard
          FROM headrace.rehash_moves m
          JOIN headrace.rehash_repositories n ON n.name = m.name
          JOIN public.gitserver_repos g ON g.repo_id = n.repo_id
         WHERE m.partition = %(partition)s AND m.state = 'copied' AND {behind}
           AND g.shard_id IN (m.from_node, regexp_replace(m.from_node, ':[0-9]+$', ''))
         ORDER BY g.repo_id FOR UPDATE OF g
    )
    UPDATE public.gitserver_repos g SET shard_id = recorded.shard, updated_at = now()
      FROM recorded WHERE g.repo_id = recorded.repo_id AND g.shard_id <> recorded.shard
"""
# In its own transaction, after the commit that moved the cursor: from then on the cursor is visible to every reader.
_PASSED: Final = """
    UPDATE headrace.rehash_moves m
       SET state = 'passed', tries = 0, changed_at = clock_timestamp(),
           not_before = clock_timestamp() + make_interval(secs => %(known)s),
           leave_at = clock_timestamp() + make_interval(secs => %(grace)s)
      FROM headrace.rehash_cursors c
     WHERE c.partition = m.partition AND m.partition = %(partition)s AND m.state = 'copied' AND {behind}
"""
_AHEAD: Final = {
    Direction.FORWARD: "(%(upto)s::text IS NULL OR m.name > %(upto)s::text)",
    Direction.REVERSE: "(%(finished)s OR m.name <= %(upto)s::text)",
}
_BEHIND: Final = {
    Direction.FORWARD: "(c.finished OR m.name <= c.upto)",
    Direction.REVERSE: "(NOT c.finished AND (c.upto IS NULL OR m.name > c.upto))",
}


_HAS_PASSED: Final = (
    "SELECT EXISTS (SELECT FROM headrace.rehash_cursors c WHERE c.partition = %(partition)s AND {behind})"
)
_NEVER_MOVED: Final = "SELECT NOT EXISTS (SELECT FROM headrace.rehash_cursors WHERE partition = %(partition)s)"


def reached(cursor: Cursor) -> dict[str, str]:
    """Return partition → the names that its cursor has passed, as text."""
    found = cursor.execute("SELECT partition, upto, finished FROM headrace.rehash_cursors ORDER BY partition")
    return {
        str(partition): "every name" if finished else "no name" if upto is None else f"the names up to {upto}"
        for partition, upto, finished in found
    }


def has_passed(cursor: Cursor, partition: int, name: str, direction: Direction) -> bool:
    """Return whether the current cursor sends readers to a name's new home first."""
    here = {"partition": partition, "name": name}
    if _found(cursor, _NEVER_MOVED, here) == (True,):
        return direction is Direction.REVERSE
    query = _HAS_PASSED.format(behind=_BEHIND[direction].replace("m.name", '%(name)s::text COLLATE "C"'))
    return bool(_found(cursor, query, here) == (True,))


def move(cursor: Cursor, partition: int, direction: Direction, unnoted: Sequence[str]) -> bool:
    """Move a partition's cursor past all names that are copied without a gap; return whether it moved.

    Called in the transaction that makes the move visible. `unnoted` are names of the partition that are cloned and not
    recorded yet. The end of the way forward is `finished`; the end of the way back is a cursor without a name.
    """
    forward = direction is Direction.FORWARD
    cursor.execute(_OPENED, (partition,))
    upto, finished = _found(cursor, _LOCKED, (partition,))
    here = {"partition": partition, "upto": upto, "finished": finished}
    query = _IN_THE_WAY.format(first="min" if forward else "max", ahead=_AHEAD[direction])
    (wanted,) = _found(cursor, query, here)
    wall = _wall(wanted, unnoted, upto, finished, forward)
    if wall is None:
        here |= {"upto": None, "finished": forward}
    elif forward:
        (before,) = _found(cursor, _BEFORE, (partition, wall))
        # Never backwards: readers of a name that was passed and is wanted again are already at its new home.
        if not finished and before is not None and (upto is None or before > upto):
            here["upto"] = before
    else:
        here |= {"upto": wall, "finished": False}
    cursor.execute(_MOVE, here)
    moved = cursor.rowcount > 0
    behind = _BEHIND[direction].replace("c.finished", "%(finished)s").replace("c.upto", "%(upto)s::text")
    cursor.execute(_RECORD.format(behind=behind), here)
    return moved


def _wall(wanted: str | None, unnoted: Sequence[str], upto: str | None, finished: bool, forward: bool) -> str | None:
    """Return the first name ahead that the cursor may not pass, or None."""
    if forward:
        ahead = [name for name in unnoted if not finished and (upto is None or name.encode() > upto.encode())]
    else:
        ahead = [name for name in unnoted if finished or (upto is not None and name.encode() <= upto.encode())]
    names = ahead if wanted is None else [*ahead, wanted]
    return (min if forward else max)(names, key=str.encode) if names else None


def mark_passed(cursor: Cursor, partition: int, direction: Direction, *, known: float, grace: float) -> int:
    """Mark the copied names that the cursor has passed; return how many.

    All readers have the new cursor in `known` seconds, and old copies may be removed in `grace` seconds.
    """
    query = _PASSED.format(behind=_BEHIND[direction])
    cursor.execute(query, {"partition": partition, "known": known, "grace": grace})
    return cursor.rowcount


def _found(cursor: Cursor, query: str, parameters: Any) -> Any:
    return cursor.execute(query, parameters).fetchone()
