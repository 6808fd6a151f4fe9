"""`python -m tests.fuzz.tables`: random tables under random work, whose topics are compared with them.

Each round has a database, some tables, an application that writes, alters and undoes, and a producer that is stopped
and killed. Afterwards each topic, folded by key, is what its table says, or the table is stopped for a reason that is
true; then it is read anew, as its remedy says, and compared after all. A start that is refused is for a reason that is
true as well, and its remedy is followed. A round that fails names its seed, with which the same is drawn again; what
the producer does in between is as fast as the machine.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from typing import Final

from tests.fuzz.planted import PLANTS
from tests.fuzz.planting import hunt
from tests.fuzz.rounds import Outcome, play
from tests.fuzz.script import Script, draw
from tests.fuzz.shrinking import shrunk
from tests.fuzz.world import Broken, World
from tests.server_versions import MAJORS, NEWEST, stack_of

_PLANTED_ROUNDS: Final = 200
"""Within so many a fault that was put back is to be found."""


def main() -> int:
    chosen = _arguments()
    first = chosen.seed if chosen.seed is not None else random.randrange(100_000)
    only = tuple(chosen.change)
    deadline = float("inf") if chosen.rounds else time.monotonic() + chosen.seconds
    failed: list[int] = []
    tally = Tally()
    with stack_of(chosen.version) as (server, bootstrap_servers, directory):
        world = World(server, bootstrap_servers, directory)
        if chosen.plant:
            names = list(PLANTS) if "all" in chosen.plant else chosen.plant
            return 1 if hunt(world, names, chosen.version, first, chosen.rounds or _PLANTED_ROUNDS, only) else 0
        seed = first
        while time.monotonic() < deadline and (not chosen.rounds or seed < first + chosen.rounds):
            script = draw(seed, chosen.version, only)
            began = time.monotonic()
            try:
                outcome = play(world, script)
            except Exception as error:
                if not isinstance(error, Broken):
                    traceback.print_exc()
                failed.append(seed)
                if chosen.shrink:
                    script = shrunk(world, script)
                if chosen.shrink or not chosen.keep_going:
                    print(script.described())
                what = f"FAILED seed {seed}: {str(error)[:2500] or type(error).__name__} [{changed(script)}]"
                print(f"{what}; again with: {again(seed, chosen.version, only)}", flush=True)
                if not chosen.keep_going:
                    return 1
            else:
                tally.add(outcome)
                took = f"{time.monotonic() - began:.1f} s"
                print(f"round {seed - first + 1}, seed {seed}: {told(outcome)}, {took}; {changed(script)}", flush=True)
            seed += 1
    print(f"PostgreSQL {chosen.version}: {seed - first} rounds, {len(failed)} failed {failed}; {tally}")
    if not failed and not tally.rows:
        print("no table with rows was compared: nothing was shown")
    return 1 if failed or not tally.rows else 0


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz.tables", description=__doc__)
    arguments.add_argument("--rounds", type=int, default=0, help="end after so many rounds; 0: only by time")
    arguments.add_argument("--seconds", type=float, default=60.0, help="begin no round after so many seconds")
    arguments.add_argument("--seed", type=int, default=None, help="the first round's; each next one has the next")
    arguments.add_argument("--version", type=int, choices=MAJORS, default=NEWEST, help="PostgreSQL's")
    arguments.add_argument("--change", action="append", default=[], help="make no other changes than this one")
    arguments.add_argument("--keep-going", action="store_true", help="play on after a failure, fail at the end")
    arguments.add_argument(
        "--plant", action="append", default=[], choices=(*PLANTS, "all"), help="put a fault back, and look for it"
    )
    arguments.add_argument("--shrink", action="store_true", help="look for fewer acts that fail as well")
    return arguments.parse_args()


class Tally:
    """What came of all rounds together: how many tables were compared in the end, and how many were stopped before."""

    def __init__(self) -> None:
        self.tables: Counter[str] = Counter()
        self.rows = 0
        self.refusals = 0

    def add(self, outcome: Outcome) -> None:
        self.rows += sum(outcome.equal.values())
        self.refusals += len(outcome.refusals)
        self.tables["equal"] += len(outcome.equal.keys() - outcome.stopped.keys())
        self.tables["stopped, then equal"] += len(outcome.equal.keys() & outcome.stopped.keys())
        self.tables["stopped"] += len(outcome.still)
        self.tables["left out"] += len(outcome.left_out)

    def __str__(self) -> str:
        count = max(1, sum(self.tables.values()))
        shares = ", ".join(f"{name} {number} ({number / count:.0%})" for name, number in self.tables.items())
        return f"tables: {shares}; {self.rows} rows compared; {self.refusals} starts refused"


def told(outcome: Outcome) -> str:
    """Return one round's outcome in a few words."""
    rows = sum(outcome.equal.values())
    parts = [f"{len(outcome.equal)} equal ({rows} rows)"]
    parts += [f"{table} stopped: {why[:60]}" for table, why in outcome.stopped.items()]
    parts += [f"{table} left out: {why[:60]}" for table, why in outcome.left_out.items()]
    parts += [f"refused: {why[:80]}" for why in outcome.refusals]
    return ", ".join(parts)


def changed(script: Script) -> str:
    """Name the changes of a round."""
    made = {
        f"{act.what} ({act.table})" if act.table else act.what
        for act in script.acts
        if act.table or act.justifies or act.what == "request nonsense"
    }
    role = "owner" if script.owned else "superuser"
    return "; ".join([script.encoding, role, *script.settings, *script.role_settings, *sorted(made)])


def again(seed: int, version: int, only: tuple[str, ...]) -> str:
    changes = "".join(f" CHANGE={change}" for change in only)
    return f"make fuzz ONLY=tables ROUNDS=1 SEED={seed} VERSION={version}{changes}"


if __name__ == "__main__":
    sys.exit(main())
