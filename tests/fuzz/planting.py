"""Plays rounds with a fault planted in headrace until one fails, and that one again without the fault."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz.planted import PLANTS, planted
from tests.fuzz.rounds import play
from tests.fuzz.script import Script, draw
from tests.fuzz.world import Broken, World

WITHIN = 200
"""So many rounds may it take to find a fault."""


def hunt(
    world: World, names: Sequence[str], version: int, seeds: range, *, jobs: int, only: tuple[str, ...] = ()
) -> list[str]:
    """Print for each fault after how many rounds it was found, and how it showed; return those that were not.

    A round counts that fails with the fault and is clean without it. Each fault begins at the first of the seeds;
    `only` are the changes that a round may make.
    """
    missed: list[str] = []
    for name in names:
        told = f"{name} (point {PLANTS[name].point})"
        if version not in PLANTS[name].majors:
            print(f"{told}: only on PostgreSQL {', '.join(map(str, PLANTS[name].majors))}", flush=True)
            continue
        began = time.monotonic()
        for at in range(0, len(seeds), jobs):
            scripts = [draw(seed, version, only) for seed in seeds[at : at + jobs]]
            if (found := _found(world, name, scripts)) is not None:
                seed, how = found
                took = time.monotonic() - began
                print(f"{told}: found in round {seed - seeds[0] + 1}, seed {seed}, {took:.0f} s: {how}", flush=True)
                break
        else:
            missed.append(name)
            print(f"{told}: NOT FOUND in {len(seeds)} rounds", flush=True)
    return missed


def _found(world: World, name: str, scripts: Sequence[Script]) -> tuple[int, str] | None:
    """Return the seed of the first of the scripts that fails with the fault alone, and how."""
    with planted(name), ThreadPoolExecutor(len(scripts)) as pool:
        world.plant = name
        shown = list(pool.map(lambda script: _failure(world, script), scripts))
        world.plant = None
    for script, how in zip(scripts, shown, strict=True):
        if how and not _failure(world, script):
            return script.seed, " ".join(how.split())[:300]
    return None


def _failure(world: World, script: Script) -> str:
    """Return how a round fails, nothing when it does not."""
    try:
        play(world, script)
    except Broken as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
