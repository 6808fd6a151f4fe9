"""`python -m tests.chaos`: switchovers in mid-migration under load, with random timing and kills, until time is up.

A round that breaks a promise ends it with exit code 1 and names its seed: the same seed draws the same kills.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from infra.stack import embedded_stack
from tests.consumers.failover import play


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    arguments.add_argument("--minutes", type=float, default=15.0, help="begin no round after so many minutes")
    arguments.add_argument("--rounds", type=int, default=0, help="end after so many rounds; 0: only by time")
    arguments.add_argument("--seed", type=int, default=None, help="the first round's; each next one has the next")
    chosen = arguments.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.randrange(10_000)
    deadline = time.monotonic() + 60 * chosen.minutes
    played = 0
    with embedded_stack() as stack, tempfile.TemporaryDirectory(prefix="headrace-chaos-") as directory:
        while time.monotonic() < deadline and (not chosen.rounds or played < chosen.rounds):
            began = time.monotonic()
            try:
                story = play(stack, Path(directory), seed, synchronized=seed % 2 == 1)
            except AssertionError as error:
                print(f"seed {seed}: {error}; again with: make chaos SEED={seed}", file=sys.stderr)
                return 1
            played += 1
            seed += 1
            print(f"round {played}: {story} {time.monotonic() - began:.0f} s", flush=True)
    print(f"{played} rounds: every row that should change changed once, on the side that owned it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
