"""Which way the moves go: a run says so when it begins, and all its members go that way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg

from schemas.errors import SettingsError

Cursor = psycopg.Cursor[Any]

_FIRST: Final = """
    INSERT INTO headrace.rehash_runs (run, direction, nodes) VALUES (%(run)s, %(direction)s, %(nodes)s)
    ON CONFLICT DO NOTHING
"""
_TURN: Final = """
    UPDATE headrace.rehash_moves
       SET state = 'wanted', tries = 0, failure = NULL, not_before = '-infinity', changed_at = now()
"""
_AGAIN: Final = f"{_TURN} WHERE state = 'failed'"


def begin(cursor: Cursor, run: int, direction: str, nodes: Sequence[str]) -> None:
    """Take part in a run, within a transaction; the first member of a new run decides which way it goes.

    Another way than the run before looks at every repository again; the same way tries again what failed. Raises
    SettingsError when the run goes another way, or between other nodes, than these settings say.
    """
    ours = {"run": run, "direction": str(direction), "nodes": list(nodes)}
    cursor.execute(_FIRST, ours)
    row = cursor.execute("SELECT run, direction, nodes FROM headrace.rehash_runs FOR UPDATE").fetchone()
    assert row is not None
    same = (row[1], row[2]) == (ours["direction"], ours["nodes"])
    if row[0] == run and not same:
        what = (
            f"goes {row[1]}, not {direction}"
            if row[1] != direction
            else "goes between other nodes, or in another order"
        )
        raise SettingsError(
            f"run {run} of rehash_moves {what}",
            remedy="begin a new run with `headrace replay rehash_moves`, or correct the settings",
        )
    if row[0] != run:
        cursor.execute(
            "UPDATE headrace.rehash_runs SET run = %(run)s, direction = %(direction)s, nodes = %(nodes)s", ours
        )
        cursor.execute(_AGAIN if same else _TURN)
