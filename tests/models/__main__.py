"""`python -m tests.models`: verifies the models of docs/explanation/models with SPIN, and that every rule is needed.

A complete model has to hold in every reachable state, and every statement has to be reached; without any one rule there
has to be a counterexample. Exit code 1 if not, 2 if SPIN or a C compiler is missing.
"""

from __future__ import annotations

import argparse
import sys

from tests.models.runs import LEFT_OUT, Run, every_run
from tests.models.spin import Found, NotVerified, SpinMissing, require_tools, verify


def judged(run: Run, found: Found) -> tuple[str, bool]:
    """Return a summary of a run's outcome, and whether it is as expected."""
    if run.without:
        if found.problem is None:
            return "NO COUNTEREXAMPLE", False
        return f"counterexample of {found.steps} steps", True
    if found.problem is not None:
        return f"VIOLATED: {found.problem}", False
    if not found.exhaustive:
        return "NOT EXHAUSTIVE", False
    if found.unreached and not run.progress:
        return f"NEVER REACHED: {', '.join(found.unreached)}", False
    return "holds", True


def main() -> int:
    models = sorted({run.model for run in LEFT_OUT})
    arguments = argparse.ArgumentParser(prog="python -m tests.models", description=__doc__)
    arguments.add_argument("--only", choices=models, default=None, help="verify one model")
    arguments.add_argument("--rule", default=None, help="only verify the models without this rule")
    chosen = arguments.parse_args()
    try:
        require_tools()
    except SpinMissing as error:
        print(error, file=sys.stderr)
        return 2
    runs = [
        run
        for run in every_run()
        if chosen.only in (None, run.model) and (chosen.rule is None or chosen.rule == run.without)
    ]
    print(f"{'model':<10}{'run':<26}{'states':>12}{'transitions':>13}{'depth':>8}{'seconds':>9}  outcome")
    right = bool(runs)
    for run in runs:
        try:
            found = verify(run)
        except NotVerified as error:
            print(f"{run.model:<10}{run.title:<26}{'':>42}  NOT VERIFIED: {error}", flush=True)
            right = False
            continue
        outcome, good = judged(run, found)
        right &= good
        print(
            f"{run.model:<10}{run.title:<26}{found.states:>12,}{found.transitions:>13,}{found.depth:>8,}"
            f"{found.seconds:>9.1f}  {outcome}",
            flush=True,
        )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
