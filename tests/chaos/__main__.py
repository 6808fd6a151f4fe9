"""`python -m tests.chaos`: runs systems under load while processes are killed at random moments, until time is up.

It plays every module in this directory that has a `play_round(stack, directory, seed)`; the modules take turns.
`play_round` returns a summary, and raises AssertionError if a promise was broken. Any error ends the run with exit
code 1 and prints the seed, which draws the same kills again. A module with `play_for(stack, directory, seed, seconds)`
plays for the given time: the whole time if it is the only one.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infra.stack import EmbeddedStack, embedded_stack

PlayRound = Callable[[EmbeddedStack, Path, int, float], Mapping[str, Any]]
"""Plays one round in a directory, with a seed, for about the given seconds unless it has its own length."""

_TURN_SECONDS = 60.0
"""Length of such a round when several modules take turns."""


def plays() -> dict[str, PlayRound]:
    """Return what can be played, by module name."""
    siblings = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    names = [name for name in siblings if not name.startswith(("_", "test_"))]
    modules = {name: importlib.import_module(f"tests.chaos.{name}") for name in names}
    found: dict[str, PlayRound] = {}
    for name, module in modules.items():
        if hasattr(module, "play_for"):
            found[name] = module.play_for
        elif hasattr(module, "play_round"):
            found[name] = _of_its_own_length(module.play_round)
    return found


def _of_its_own_length(play_round: Callable[[EmbeddedStack, Path, int], Mapping[str, Any]]) -> PlayRound:
    return lambda stack, directory, seed, _seconds: play_round(stack, directory, seed)


def main() -> int:
    every = plays()
    arguments = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    arguments.add_argument("--minutes", type=float, default=15.0, help="start no round after this many minutes")
    arguments.add_argument("--rounds", type=int, default=0, help="end after this many rounds; 0: no limit")
    arguments.add_argument("--seed", type=int, default=None, help="first seed; each round takes the next")
    arguments.add_argument("--only", choices=sorted(every), default=None, help="play only this module")
    arguments.add_argument("--keep-going", action="store_true", help="continue after a broken promise, fail at the end")
    chosen = arguments.parse_args()
    names = [chosen.only] if chosen.only else sorted(every)
    seed = chosen.seed if chosen.seed is not None else random.randrange(10_000)
    deadline = time.monotonic() + 60 * chosen.minutes
    played = 0
    failed: list[int] = []
    with embedded_stack(fsync=False) as stack, tempfile.TemporaryDirectory(prefix="headrace-chaos-") as directory:
        while time.monotonic() < deadline and (not chosen.rounds or played < chosen.rounds):
            began = time.monotonic()
            name = names[played % len(names)]
            left = deadline - began
            try:
                story = every[name](stack, Path(directory), seed, left if len(names) == 1 else min(left, _TURN_SECONDS))
            except Exception as error:
                if not isinstance(error, AssertionError):
                    traceback.print_exc()
                print(f"{name}, seed {seed}: {error}; repeat with: make chaos ONLY={name} SEED={seed}", file=sys.stderr)
                if not chosen.keep_going:
                    return 1
                failed.append(seed)
            else:
                print(f"round {played + 1}, {name}: {dict(story)} {time.monotonic() - began:.0f} s", flush=True)
            played += 1
            seed += 1
    if failed:
        print(f"{len(failed)} of {played} rounds broke a promise; seeds: {failed}", file=sys.stderr)
        return 1
    print(f"{played} rounds of {', '.join(names)}: no promise was broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
