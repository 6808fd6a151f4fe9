"""Plays rounds with a fault planted in headrace until one fails, and that one again without the fault."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz.planted import PLANTS, planted
from tests.fuzz.rounds import play
from tests.fuzz.script import draw
from tests.fuzz.world import Broken, World

WITHIN = 200
"""So many rounds may it take to find a fault."""


def hunt(world: World, names: Sequence[str], version: int, first: int, rounds: int, jobs: int) -> list[str]:
    """Print for each fault after how many rounds it was found, and how it showed; return those that were not.

    A round counts that fails with the fault and is clean without it. Each fault begins at the seed `first`.
    """
    missed: list[str] = []
    for name in names:
        told = f"{name} (point {PLANTS[name].point})"
        if version not in PLANTS[name].majors:
            print(f"{told}: only on PostgreSQL {', '.join(map(str, PLANTS[name].majors))}", flush=True)
            continue
        began = time.monotonic()
        for number in range(0, rounds, jobs):
            seeds = range(first + number, first + min(number + jobs, rounds))
            if (found := _found(world, name, version, seeds)) is not None:
                seed, how = found
                took = time.monotonic() - began
                print(f"{told}: found in round {seed - first + 1}, seed {seed}, {took:.0f} s: {how}", flush=True)
                break
        else:
            missed.append(name)
            print(f"{told}: NOT FOUND in {rounds} rounds", flush=True)
    return missed


def _found(world: World, name: str, version: int, seeds: Sequence[int]) -> tuple[int, str] | None:
    """Return the first of the seeds that fails with the fault alone, and how."""
    with planted(name), ThreadPoolExecutor(len(seeds)) as pool:
        world.plant = name
        shown = list(pool.map(lambda seed: _failure(world, seed, version), seeds))
        world.plant = None
    for seed, how in zip(seeds, shown, strict=True):
        if how and not _failure(world, seed, version):
            return seed, " ".join(how.split())[:300]
    return None


def _failure(world: World, seed: int, version: int) -> str:
    """Return how a round fails, nothing when it does not."""
    try:
        play(world, draw(seed, version))
    except Broken as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
