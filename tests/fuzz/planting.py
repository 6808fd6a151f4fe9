"""Plays rounds with a fault planted in headrace until one fails, and that one again without the fault."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.fuzz.planted import PLANTS, planted
from tests.fuzz.rounds import play
from tests.fuzz.script import draw
from tests.fuzz.world import Broken, World


def hunt(world: World, names: Sequence[str], version: int, first: int, rounds: int, only: tuple[str, ...]) -> list[str]:
    """Print for each fault after how many rounds it was found, and how it showed; return those that were not.

    A round counts that fails with the fault and is clean without it.
    """
    missed: list[str] = []
    for name in names:
        fault = PLANTS[name]
        if version not in fault.majors:
            print(f"{name} (point {fault.point}): only on {fault.majors}", flush=True)
            continue
        began = time.monotonic()
        for number in range(rounds):
            seed = first + number
            shown = _failure(world, name, seed, version, only)
            if shown and not _failure(world, None, seed, version, only):
                took = time.monotonic() - began
                told = " ".join(shown.split())[:240]
                print(
                    f"{name} (point {fault.point}): found in round {number + 1}, seed {seed}, {took:.0f} s: {told}",
                    flush=True,
                )
                break
        else:
            missed.append(name)
            print(f"{name} (point {fault.point}): NOT FOUND in {rounds} rounds", flush=True)
    return missed


def _failure(world: World, name: str | None, seed: int, version: int, only: tuple[str, ...]) -> str:
    """Return how a round fails, nothing when it does not."""
    world.plant = name
    try:
        with planted(name):
            play(world, draw(seed, version, only))
    except Broken as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        world.plant = None
    return ""
