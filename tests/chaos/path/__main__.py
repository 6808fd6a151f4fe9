"""`python -m tests.chaos.path`: plays rounds of the whole path; a broken promise ends them with exit code 1.

With `--planted`, violations are planted in headrace's processes one by one; each has to be found within a minute.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import random
import sys
import threading
import time
import traceback
from pathlib import Path

from infra.service import log
from infra.settings.model import LogSettings
from tests.chaos.path import reliability
from tests.chaos.path.build import VIOLATIONS
from tests.chaos.path.faults import Faults
from tests.chaos.path.namespaces import missing
from tests.chaos.path.planted import catch_all
from tests.chaos.path.round import Story, play
from tests.chaos.path.world import World


def play_one(seed: int, seconds: float, brokers: int) -> Story:
    """Play one round in a separate world."""
    world = World(seed, brokers=brokers)
    try:
        world.produce()
        world.until_ledger()
        return play(world, lambda watch: Faults(world.targets, world.network, seed, watch.reached), seed, seconds)
    except BaseException:
        print(*world.tails(), sep="\n", file=sys.stderr)
        raise
    finally:
        world.close()


def main() -> int:
    faulthandler.enable()
    log.configure(LogSettings(level="error"))
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # lost sessions are expected here
    arguments = argparse.ArgumentParser(prog="python -m tests.chaos.path", description=__doc__)
    arguments.add_argument("--minutes", type=float, default=10.0, help="length of a round")
    arguments.add_argument("--rounds", type=int, default=1, help="number of rounds, each with the next seed")
    arguments.add_argument("--seed", type=int, default=None, help="seed of the first round")
    arguments.add_argument("--brokers", type=int, default=3)
    arguments.add_argument(
        "--planted",
        choices=("all", *VIOLATIONS),
        action="append",
        help="plant a violation and find it, instead of playing; all: one after another",
    )
    arguments.add_argument("--results", type=Path, default=None, help="append each round's results to this file")
    arguments.add_argument("--report", action="store_true", help=f"write {reliability.PAGE} from --results, and exit")
    chosen = arguments.parse_args()
    if chosen.report:
        reliability.write(chosen.results)
        return 0
    if (lacking := missing()) is not None:
        print(f"packet faults are skipped: {lacking}", file=sys.stderr)
    seed = chosen.seed if chosen.seed is not None else random.randrange(100_000)
    if chosen.planted:
        violations = list(VIOLATIONS) if "all" in chosen.planted else chosen.planted
        return catch_all(violations, seed, chosen.brokers, chosen.results)
    for number in range(seed, seed + chosen.rounds):
        began = time.monotonic()
        again = f"repeat with: make chaos SEED={number} MINUTES={chosen.minutes:g}"
        # In a separate thread, which stays in the namespace it enters.
        story = _in_a_thread(number, 60 * chosen.minutes, chosen.brokers)
        if story is None:
            print(f"seed {number} did not finish; {again}", file=sys.stderr)
            return 1
        tried = {f"{role} {kind}": count for (kind, role), count in sorted(story.tried.items())}
        print(f"seed {number}: {len(story.faults)} faults in {time.monotonic() - began:.0f} s: {tried}", flush=True)
        print(f"  {json.dumps(story.figures)}", flush=True)
        if chosen.results is not None:
            reliability.add(chosen.results, story, chosen.brokers)
        if story.verdict is not None:
            print(f"seed {number}: {story.verdict}\n{again}", file=sys.stderr)
            return 1
    print("no promise was broken")
    return 0


def _in_a_thread(seed: int, seconds: float, brokers: int) -> Story | None:
    found: list[Story] = []

    def run() -> None:
        try:
            found.append(play_one(seed, seconds, brokers))
        except BaseException:
            traceback.print_exc()

    thread = threading.Thread(target=run, name=f"round {seed}")
    thread.start()
    thread.join()
    return found[0] if found else None


if __name__ == "__main__":
    sys.exit(main())
