"""The direction of the moves: recorded when a run begins, and binding for all its consumers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from consumers.routing.placement import normalised
from schemas.errors import SettingsError

Cursor = psycopg.Cursor[Any]

_FIRST: Final = """
    INSERT INTO headrace.rehash_runs (run, direction, nodes, pins)
    VALUES (%(run)s, %(direction)s, %(nodes)s, %(pins)s)
    ON CONFLICT DO NOTHING
"""
_KNOWN: Final = "SELECT run, direction, nodes, pins FROM headrace.rehash_runs FOR UPDATE"
_NEXT: Final = """
    UPDATE headrace.rehash_runs
       SET run = %(run)s, direction = %(direction)s, nodes = %(nodes)s, pins = %(pins)s
"""
_TURN: Final = """
    UPDATE headrace.rehash_moves
       SET state = 'wanted', tries = 0, failure = NULL, not_before = '-infinity', changed_at = now()
"""
_AGAIN: Final = f"{_TURN} WHERE state = 'failed'"


class RunGoesElsewhere(SettingsError):
    """Start a new run with `headrace replay rehash_moves`, or correct the settings."""


class PinOfTwoCopies(SettingsError):
    """Revert the pin and let the run end; then change it, and start a new run."""


def begin(
    cursor: Cursor,
    run: int,
    direction: str,
    nodes: Sequence[str],
    pins: Mapping[str, str],
    *,
    copies: Callable[[str], Collection[str]],
) -> None:
    """Join a run, within a transaction; the first consumer of a new run determines its direction.

    If the direction differs from the previous run's, every repository is checked again; else the failed ones are tried
    again. `copies` returns the nodes that have a copy of a name. Raises RunGoesElsewhere if the run has another
    direction, other nodes or other pins than these settings, and PinOfTwoCopies if a new run has another pin for a name
    of which the previous run left two copies: readers of the pin see one of them, and the other may be newer.
    """
    pinned = {normalised(name): node for name, node in pins.items()}
    ours = {"run": run, "direction": str(direction), "nodes": list(nodes), "pins": Jsonb(pinned)}
    cursor.execute(_FIRST, ours)
    row = cursor.execute(_KNOWN).fetchone()
    assert row is not None
    known, *before, pinned_before = row
    changed = _changed(pinned_before, pinned)
    same = before == [ours["direction"], ours["nodes"]] and not changed
    if known == run:
        if not same:
            raise RunGoesElsewhere(f"run {run} of rehash_moves {_difference(before, ours, changed, pinned_before)}")
        return
    for name in changed:
        if len(found := copies(name)) > 1:
            raise PinOfTwoCopies(f"the pin of {name} changed during its move: it is on {' and '.join(found)}")
    cursor.execute(_NEXT, ours)
    cursor.execute(_AGAIN if same else _TURN)


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _difference(before: Sequence[Any], ours: Mapping[str, Any], changed: Sequence[str], pins: Mapping[str, str]) -> str:
    if before[0] != ours["direction"]:
        return f"has direction {before[0]}, not {ours['direction']}"
    if before[1] != ours["nodes"]:
        return "has other nodes, or another order of them"
    name = changed[0]
    was = f"pinned to {pins[name]}" if name in pins else "not pinned"
    more = f", and {len(changed) - 1:,} other pins differ" if len(changed) > 1 else ""
    return f"began with {name} {was}{more}"
