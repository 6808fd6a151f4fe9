"""`python -m tests.fuzz.tables`: random tables under random work, whose topics are compared with them.

Each round has a database, some tables, an application that writes, alters and undoes, and a producer that is stopped
and killed. Afterwards each topic, folded by key, is what its table says, or the table is stopped for a reason that is
true. A round that fails names its seed, with which the same is drawn again; what the producer does in between is as
fast as the machine.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter

from tests.fuzz.rounds import Broken, World, play
from tests.fuzz.script import Script, draw
from tests.fuzz.shrinking import shrunk
from tests.server_versions import MAJORS, NEWEST, stack_of


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz.tables", description=__doc__)
    arguments.add_argument("--rounds", type=int, default=0, help="end after so many rounds; 0: only by time")
    arguments.add_argument("--seconds", type=float, default=60.0, help="begin no round after so many seconds")
    arguments.add_argument("--seed", type=int, default=None, help="the first round's; each next one has the next")
    arguments.add_argument("--version", type=int, choices=MAJORS, default=NEWEST, help="PostgreSQL's")
    arguments.add_argument("--change", action="append", default=[], help="make no other changes than this one")
    arguments.add_argument("--keep-going", action="store_true", help="play on after a failure, fail at the end")
    arguments.add_argument("--shrink", action="store_true", help="look for fewer acts that fail as well")
    chosen = arguments.parse_args()
    first = chosen.seed if chosen.seed is not None else random.randrange(100_000)
    only = tuple(chosen.change)
    deadline = float("inf") if chosen.rounds else time.monotonic() + chosen.seconds
    failed: dict[int, str] = {}
    counts: Counter[str] = Counter()
    with stack_of(chosen.version) as (server, bootstrap_servers, directory):
        world = World(server, bootstrap_servers, directory)
        seed = first
        while time.monotonic() < deadline and (not chosen.rounds or seed < first + chosen.rounds):
            script = draw(seed, chosen.version, only)
            began = time.monotonic()
            try:
                outcome = play(world, script)
            except Exception as error:
                if not isinstance(error, Broken):
                    traceback.print_exc()
                failed[seed] = str(error) or type(error).__name__
                if chosen.shrink:
                    script = shrunk(world, script)
                if chosen.shrink or not chosen.keep_going:
                    print(script.described())
                told = f"seed {seed}: {str(error)[:1500]} [{changed(script)}]"
                print(f"{told}; again with: {again(seed, chosen.version, only)}", flush=True)
                if not chosen.keep_going:
                    return 1
            else:
                counts["equal"] += outcome.equal
                counts["stopped"] += len(outcome.stopped)
                counts["refused"] += bool(outcome.refused)
                print(
                    f"round {seed - first + 1}, seed {seed}: {outcome.equal} equal, {len(outcome.stopped)} stopped"
                    f" {time.monotonic() - began:.1f} s; {changed(script)} {outcome.refused}",
                    flush=True,
                )
            seed += 1
    print(f"{seed - first} rounds, {len(failed)} failed {sorted(failed)}; tables: {dict(counts)}")
    return 1 if failed else 0


def changed(script: Script) -> str:
    """Name the changes of a round."""
    made = {f"{act.what} ({act.table})" if act.table else act.what for act in script.acts if act.table or act.justifies}
    return "; ".join([script.encoding, *script.settings, *script.role_settings, *sorted(made)])


def again(seed: int, version: int, only: tuple[str, ...]) -> str:
    changes = "".join(f" CHANGE={change}" for change in only)
    return f"make fuzz ONLY=tables ROUNDS=1 SEED={seed} VERSION={version}{changes}"


if __name__ == "__main__":
    sys.exit(main())
