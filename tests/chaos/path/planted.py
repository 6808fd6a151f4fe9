"""Tests the checker on real servers: each violation is planted in headrace's processes, and has to be found."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.chaos.path.faults import CUT_OFF, FROZEN, KILLED, Faults
from tests.chaos.path.round import RefusedToContinue, play
from tests.chaos.path.targets import BROKER, CONSUMER, PRODUCER, STANDBY
from tests.chaos.path.watch import Watch
from tests.chaos.path.world import World

_SECONDS: Final = 12.0
LIMIT_SECONDS: Final = 60.0
"""Deadline for finding a violation, from the application's first write."""

DISTURBED: Final[Mapping[str, Mapping[str, float]]] = {
    "skip an event": {STANDBY: 1},
    "apply twice": {STANDBY: 1},
    "apply before visible": {STANDBY: 1},
    "commit the offset early": {STANDBY: 3, CONSUMER: 1},
    "confirm the LSN early": {PRODUCER: 4, BROKER: 1},
    "ignore the fence": {STANDBY: 1},
    "lose the ledger's last commit": {CONSUMER: 1},
    "repair silently": {STANDBY: 1},
}
"""Faults injected meanwhile: those that bring the violation to light, if it needs any."""


class Caught(NamedTuple):
    """The checker's verdict on a violation, and the time from the application's start; None: nothing found."""

    violation: str
    verdict: str | None
    seconds: float


def catch(violation: str | None, seed: int, brokers: int, *, seconds: float = _SECONDS) -> Caught:
    """Play a round with a violation planted, in a separate thread; None plants nothing."""
    found: list[Caught] = []

    def run() -> None:
        world = World(seed, brokers=brokers, violation=violation)
        began = time.monotonic()
        try:
            world.produce()
            world.until_ledger()
            began = time.monotonic()
            verdict = play(world, lambda watch: _faults(world, watch, violation, seed), seed, seconds).verdict
        except RefusedToContinue as error:
            verdict = str(error)
        except BaseException:
            print(*world.tails(), sep="\n", file=sys.stderr)
            traceback.print_exc()
            return
        finally:
            took = time.monotonic() - began
            world.close()
        found.append(Caught(violation or "nothing", verdict, took))

    thread = threading.Thread(target=run, name=f"planted {violation}")
    thread.start()
    thread.join()
    assert found, f"the round with {violation} did not finish"
    return found[0]


def _faults(world: World, watch: Watch, violation: str | None, seed: int) -> Faults:
    weights = DISTURBED.get(violation or "", {STANDBY: 1})
    kinds = (KILLED, FROZEN, CUT_OFF)
    return Faults(world.targets, world.network, seed, watch.reached, weights=weights, kinds=kinds)


def catch_all(violations: Sequence[str], seed: int, brokers: int, results: Path | None) -> int:
    """Plant each of these in turn; return the exit code: 1 unless each was found in time."""
    missed = []
    for number, violation in enumerate(violations):
        caught = catch(violation, seed + number, brokers)
        first = (caught.verdict or "NOT FOUND").splitlines()[0]
        print(f"{violation}: {first} (after {caught.seconds:.0f} s, seed {seed + number})", flush=True)
        if caught.verdict is None or caught.seconds > LIMIT_SECONDS:
            missed.append(violation)
        if results is not None:
            with results.open("a") as file:
                file.write(json.dumps({"planted": violation, "found": first, "seconds": round(caught.seconds)}) + "\n")
    if missed:
        print(f"not found within {LIMIT_SECONDS:.0f} s: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0
