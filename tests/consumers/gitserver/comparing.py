"""Compares repositories before and after a move: everything in their directories, and their nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tests.consumers.gitserver.driver import World
from tests.consumers.gitserver.kinds import Kind, inventory

Inventory = Mapping[str, Any]


def make_all(world: World, named: Mapping[str, Kind]) -> dict[str, Inventory]:
    """Create repositories, name → kind, at their old homes, and record them; return name → inventory."""
    for name, kind in named.items():
        kind.make(world.disks.old(name))
    for name, kind in named.items():
        if kind.leave is not None:
            kind.leave(world.disks.new(name), world.disks.old(name))
    world.note(world.rows(list(named)))
    return {name: inventory(world.disks.old(name)) for name, kind in named.items() if kind.name != "head_is_missing"}


def reports(world: World) -> dict[str, str]:
    """Return name → the failure and the remarks recorded for its move."""
    return {
        name: " ".join(filter(None, row))
        for name, *row in world.connection.execute("SELECT name, failure, remarks FROM headrace.rehash_moves")
    }


def wrong(
    world: World, named: Mapping[str, Kind], before: Mapping[str, Inventory], *, forward: bool
) -> Iterator[tuple[str, str]]:
    """Yield kind and error after all moves: nothing if all was kept, or refused by name."""
    yield from misplaced(world, named, forward=forward)
    for name, kind in named.items():
        place = world.disks.new(name) if forward and kind.refused is None else world.disks.old(name)
        if name in before and place.exists():
            for difference in differences(before[name], inventory(place)):
                yield kind.name, difference


def misplaced(world: World, named: Mapping[str, Kind], *, forward: bool) -> Iterator[tuple[str, str]]:
    """Yield kind and errors in its place, its move's state, and its reports."""
    states, said = world.states(), reports(world)
    for name, kind in named.items():
        old, new = world.disks.old(name), world.disks.new(name)
        moved = kind.refused is None
        # On the way back, what was refused is where it belongs.
        settles = moved or (not forward and kind.name != "head_is_missing")
        if states[name] != ("settled" if settles else "failed"):
            yield kind.name, f"{states[name]}: {said[name]}"
        if forward and (kind.refused or kind.said or "") not in said[name]:
            yield kind.name, f"no report has {kind.refused or kind.said!r}: {said[name]!r}"
        if (place := new if moved and forward else old) not in (copies := world.disks.copies(name)):
            yield kind.name, f"it is not at {place}"
        # A directory at the new home of a refused repository is not headrace's.
        yield from ((kind.name, f"unexpected copy at {each}") for each in copies if each != place)


def differences(before: Inventory, now: Inventory) -> Iterator[str]:
    """Yield how two inventories differ."""
    if gone := before["objects"] - now["objects"]:
        yield f"{len(gone)} objects are gone"
    for what in ("refs", "files", "stored"):
        for name in sorted(before[what].keys() | now[what].keys()):
            if before[what].get(name) != now[what].get(name):
                yield f"{what}: {name}: {before[what].get(name)} became {now[what].get(name)}"
