"""Every kind of repository, moved there and back: all of it arrives, or it is refused by name and nothing changed."""

from __future__ import annotations

import os
from typing import Any

import pytest

from consumers.moving import mover
from tests.consumers.moving.driver import NAMES, World, drive
from tests.consumers.moving.kinds import KINDS, MARK, Kind, inventory

pytestmark = pytest.mark.stack


def named() -> dict[str, Kind]:
    """Return the name of a repository → its kind."""
    assert len(KINDS) >= 60
    return dict(zip(NAMES, KINDS.values(), strict=False))


def reports(world: World) -> dict[str, str]:
    return {
        name: " ".join(filter(None, row))
        for name, *row in world.connection.execute("SELECT name, failure, remarks FROM headrace.rehash_moves")
    }


def test_all_of_it_arrives_there_and_back_or_it_is_refused_by_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = named()
    # Many are refused one after the other, which would slow the rest down.
    monkeypatch.setattr(mover, "_SLOW_SECONDS", 0.01)
    for parent in world.disks.directory.parents:
        if os.geteuid() == 0 and parent.stat().st_mode & 0o011 == 0:
            parent.chmod(0o711)  # for the owner that a repository has who is not the tests'
    before: dict[str, Any] = {}
    for name, each in kinds.items():
        each.make(world.disks.old(name))
    for name, each in kinds.items():
        if each.leave is not None:
            each.leave(world.disks.new(name), world.disks.old(name))
        if each.name != "head_is_missing":
            before[name] = inventory(world.disks.old(name))
    world.note(world.rows(list(kinds)))

    drive(world.settings, seconds=200)
    wrong = list(_wrong(world, kinds, before, forward=True))
    world.new_run()
    drive(world.with_options(direction="reverse"))
    wrong += _wrong(world, kinds, before, forward=False)

    assert wrong == []
    assert not (world.disks.directory.parent / MARK).exists()


def _wrong(world: World, kinds: dict[str, Kind], before: dict[str, Any], *, forward: bool) -> Any:
    states, said = world.states(), reports(world)
    for name, each in kinds.items():
        old, new = world.disks.old(name), world.disks.new(name)
        moved = each.refused is None
        place, other = (new, old) if moved and forward else (old, new)
        # On the way back, what was refused is where it belongs.
        settles = moved or (not forward and each.name != "head_is_missing")
        if states[name] != ("settled" if settles else "failed"):
            yield each.name, states[name], said[name]
            continue
        if moved and forward and (each.said or "") not in said[name]:
            yield each.name, "not said", said[name]
        if each.refused is not None and forward and each.refused not in said[name]:
            yield each.name, "for another reason", said[name]
        if other.exists():
            yield each.name, "is there twice"
        if name in before and (now := inventory(place)) != before[name]:
            yield each.name, _differences(before[name], now)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[Any]:
    found: list[Any] = [("objects", len(before["objects"] - now["objects"]), len(now["objects"] - before["objects"]))]
    for what in ("refs", "files"):
        for name in sorted(before[what].keys() | now[what].keys()):
            if before[what].get(name) != now[what].get(name):
                found.append((what, name, before[what].get(name), now[what].get(name)))
    return found[:6]
