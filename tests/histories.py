"""Runs random histories of a model the same way every time."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

_RUN: Final = 20
"""Histories of one run of Hypothesis. It varies what it tried: short runs find a rare fault sooner than a long one."""

TIMES: Final = int(os.environ.get("HISTORIES") or 1)
"""How many times the usual number of histories to run where all of them have to hold: `make test HISTORIES=20`."""


def explore(machine: type[RuleBasedStateMachine], histories: int, *, steps: int) -> None:
    """Run the same histories every time, of at most so many steps, up to the first that fails; raises its error."""
    for number, done in enumerate(range(0, histories, _RUN), 1):
        bounded = settings(
            max_examples=min(_RUN, histories - done),
            stateful_step_count=steps,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(seed(number)(machine), settings=bounded)
