"""Plays rounds with a planted fault until one fails, and that one again without the fault."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz.planted import PLANTS, planted
from tests.fuzz.rounds import play
from tests.fuzz.script import Script, draw
from tests.fuzz.world import Broken, World

WITHIN = 200
"""Maximum number of rounds to find a fault."""


def hunt(
    world: World, names: Sequence[str], version: int, seeds: range, *, jobs: int, only: tuple[str, ...] = ()
) -> list[str]:
    """Print for each fault after how many rounds it was found, and how; return those that were not found.

    A round counts if it fails with the fault and passes without it. Each fault starts at the first of the seeds; `only`
    are the changes that a round may make.
    """
    missed: list[str] = []
    for name in names:
        title = f"{name} (item {PLANTS[name].point})"
        if version not in PLANTS[name].majors:
            print(f"{title}: only on PostgreSQL {', '.join(map(str, PLANTS[name].majors))}", flush=True)
            continue
        began = time.monotonic()
        for at in range(0, len(seeds), jobs):
            scripts = [draw(seed, version, only) for seed in seeds[at : at + jobs]]
            if (found := _found(world, name, scripts)) is not None:
                seed, how = found
                took = time.monotonic() - began
                print(f"{title}: found in round {seed - seeds[0] + 1}, seed {seed}, {took:.0f} s: {how}", flush=True)
                break
        else:
            missed.append(name)
            print(f"{title}: NOT FOUND in {len(seeds)} rounds", flush=True)
    return missed


def _found(world: World, name: str, scripts: Sequence[Script]) -> tuple[int, str] | None:
    """Return the seed of the first script that fails only with the fault, and how."""
    with planted(name), ThreadPoolExecutor(len(scripts)) as pool:
        world.plant = name
        shown = list(pool.map(lambda script: _failure(world, script), scripts))
        world.plant = None
    for script, how in zip(scripts, shown, strict=True):
        if how and not _failure(world, script):
            return script.seed, " ".join(how.split())[:300]
    return None


def _failure(world: World, script: Script) -> str:
    """Return how a round fails, an empty text if it passes."""
    try:
        play(world, script)
    except Broken as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
