"""`python -m tests.fuzz.tables`: compares random tables under random work with their topics.

Each round has a database, some tables, an application that writes, alters and undoes, and a producer that is stopped
and killed. Afterwards each topic, folded by key, equals its table, or the table is stopped for a justified reason; then
it is re-snapshotted, as its remedy says, and compared. A refused start also has to have a justified reason, and its
remedy is followed. A failing round prints its seed, which draws the same round again; the producer's timing depends on
the machine.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, takewhile

from tests.fuzz.planted import PLANTS
from tests.fuzz.planting import WITHIN, hunt
from tests.fuzz.rounds import Outcome, play
from tests.fuzz.script import Script, draw
from tests.fuzz.shrinking import shrunk
from tests.fuzz.world import Broken, World
from tests.server_versions import MAJORS, NEWEST, stack_of


def main() -> int:
    chosen = _arguments()
    first = chosen.seed if chosen.seed is not None else random.randrange(100_000)
    with stack_of(chosen.version) as (server, bootstrap_servers, directory):
        world = World(server, bootstrap_servers, directory)
        if chosen.plant:
            names = list(PLANTS) if "all" in chosen.plant else chosen.plant
            seeds = range(first, first + (chosen.rounds or WITHIN))
            missed = hunt(world, names, chosen.version, seeds, jobs=chosen.jobs, only=tuple(chosen.change))
            return 1 if missed else 0
        series = Series(world, chosen)
        last = first + chosen.rounds if chosen.rounds else None
        deadline = None if chosen.rounds else time.monotonic() + chosen.seconds
        drawn = takewhile(lambda seed: seed != last and not (deadline and time.monotonic() > deadline), count(first))
        # A round waits more than it works.
        with ThreadPoolExecutor(chosen.jobs) as pool:
            for _ in range(chosen.jobs):
                pool.submit(series.play, drawn)
    print(f"PostgreSQL {chosen.version}: {series}")
    if not series.failed and not series.rows:
        print("no table with rows was compared: the run proves nothing")
    return 1 if series.failed or not series.rows else 0


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz.tables", description=__doc__)
    arguments.add_argument("--rounds", type=int, default=0, help="end after this many rounds; 0: no limit")
    arguments.add_argument("--seconds", type=float, default=60.0, help="start no round after this many seconds")
    arguments.add_argument("--seed", type=int, default=None, help="seed of the first round; each round takes the next")
    arguments.add_argument("--version", type=int, choices=MAJORS, default=NEWEST, help="PostgreSQL's")
    arguments.add_argument("--change", action="append", default=[], help="only make this kind of change")
    arguments.add_argument("--jobs", type=int, default=1, help="number of parallel rounds")
    arguments.add_argument("--keep-going", action="store_true", help="continue after a failure, fail at the end")
    arguments.add_argument(
        "--plant", action="append", default=[], choices=(*PLANTS, "all"), help="plant a fault, and look for it"
    )
    arguments.add_argument("--shrink", action="store_true", help="look for fewer acts that still fail")
    return arguments.parse_args()


class Series:
    """Rounds, several in parallel, and their combined results."""

    def __init__(self, world: World, chosen: argparse.Namespace) -> None:
        self._world = world
        self._chosen = chosen
        self._only = tuple(chosen.change)
        self._lock = threading.Lock()
        self.failed: list[int] = []
        self.rounds = 0
        self.tables: Counter[str] = Counter()
        self.rows = 0
        self.refusals = 0

    def play(self, seeds: Iterator[int]) -> None:
        """Play the rounds of `seeds`, shared with other threads, until they end or one has failed."""
        while not self.failed or self._chosen.keep_going:
            with self._lock:
                seed = next(seeds, None)
            if seed is None:
                return
            script = draw(seed, self._chosen.version, self._only)
            began = time.monotonic()
            try:
                outcome = play(self._world, script)
            except Exception as error:
                self._fail(script, error)
            else:
                self._add(script, outcome, time.monotonic() - began)

    def _fail(self, script: Script, error: Exception) -> None:
        trace = "" if isinstance(error, Broken) else "".join(traceback.format_exception(error))
        if self._chosen.shrink:
            script = shrunk(self._world, script)
        with self._lock:
            self.rounds += 1
            self.failed.append(script.seed)
            if self._chosen.shrink or not self._chosen.keep_going:
                print(script.described())
            print(
                f"{trace}FAILED seed {script.seed}: {str(error)[:2500] or type(error).__name__} [{changed(script)}];"
                f" repeat with: {again(script.seed, self._chosen.version, self._only)}",
                flush=True,
            )

    def _add(self, script: Script, outcome: Outcome, took: float) -> None:
        with self._lock:
            self.rounds += 1
            self.rows += sum(outcome.equal.values())
            self.refusals += len(outcome.refusals)
            self.tables["equal"] += len(outcome.equal.keys() - outcome.stopped.keys())
            self.tables["stopped, then equal"] += len(outcome.equal.keys() & outcome.stopped.keys())
            self.tables["stopped"] += len(outcome.still)
            self.tables["left out"] += len(outcome.left_out)
            print(
                f"round {self.rounds}, seed {script.seed}: {summary(outcome)}, {took:.1f} s; {changed(script)}",
                flush=True,
            )

    def __str__(self) -> str:
        all_of_them = max(1, sum(self.tables.values()))
        shares = ", ".join(f"{name} {number} ({number / all_of_them:.0%})" for name, number in self.tables.items())
        return (
            f"{self.rounds} rounds, {len(self.failed)} failed {sorted(self.failed)}; tables: {shares};"
            f" {self.rows} rows compared; {self.refusals} starts refused"
        )


def summary(outcome: Outcome) -> str:
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
