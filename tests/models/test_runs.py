"""Each rule of the models is left out by a run of `make model`; with SPIN installed, some are shown to be needed."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.models.__main__ import judged
from tests.models.runs import LEFT_OUT, Run
from tests.models.spin import Found, read_report, verify

_REPORT = """\
pan:1: assertion violated (a>b) (at depth 17)
State-vector 128 byte, depth reached 92, errors: 1
   424720 states, stored
   925368 transitions (= stored+matched)
unreached in proctype Session
\tmodel.pml:5, state 3, "x = 1"
\tmodel.pml:9, state 8, "-end-"
"""


@pytest.mark.parametrize("model", sorted({run.model for run in LEFT_OUT}))
def test_every_rule_that_a_model_has_is_left_out_by_a_run(model: str) -> None:
    source = next(run for run in LEFT_OUT if run.model == model).source.read_text(encoding="utf-8")
    named = set(re.findall(r"^#\s*if(?:n?def|.*defined)\s*\(?(NO_[A-Z_]+)", source, re.MULTILINE))
    assert named == {rule for run, rules in LEFT_OUT.items() if run.model == model for rule in rules}


@pytest.mark.parametrize("model", sorted({run.model for run in LEFT_OUT}))
def test_every_rule_is_explained(model: str) -> None:
    source = next(run for run in LEFT_OUT if run.model == model).source
    page = (source.parents[1] / "models.md").read_text(encoding="utf-8")
    missing = [
        rule for run, rules in LEFT_OUT.items() if run.model == model for rule in rules if f"`{rule}`" not in page
    ]
    assert missing == []


def test_report_of_a_violation_is_read() -> None:
    assert read_report(_REPORT, 1.5) == Found(
        424_720, 925_368, 92, 1.5, "assertion violated (a>b)", 17, exhaustive=True, unreached=("model.pml:5",)
    )


def test_complete_model_has_to_hold_and_be_reached_everywhere() -> None:
    whole, without = Run("snapshot"), Run("snapshot", without="NO_FENCE")
    holds = Found(1, 1, 1, 0.1, None, 0, exhaustive=True, unreached=())
    assert judged(whole, holds) == ("holds", True)
    assert judged(without, holds) == ("NO COUNTEREXAMPLE", False)
    violated = read_report(_REPORT, 1.5)
    assert judged(whole, violated) == ("VIOLATED: assertion violated (a>b)", False)
    assert judged(without, violated) == ("counterexample of 17 steps", True)
    partly = read_report(
        _REPORT.replace("pan:1: assertion violated (a>b) (at depth 17)\n", "").replace("s: 1", "s: 0"), 1
    )
    assert judged(whole, partly) == ("NEVER REACHED: model.pml:5", False)
    cut_off = read_report(
        _REPORT.replace("pan:1: assertion violated (a>b) (at depth 17)", "error: max search depth too small").replace(
            "s: 1", "s: 0"
        ),
        1,
    )
    assert judged(whole, cut_off) == ("NOT EXHAUSTIVE", False)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("spin") is None, reason="needs SPIN: apt-get install spin")
@pytest.mark.parametrize(
    "run",
    [
        Run("snapshot", ("NT=2",), "NO_BARRIER"),
        Run("apply", ("NX=2",), "NO_VISIBILITY"),
        Run("apply", ("NX=2", "LIVE"), "NO_BRING_BACK", progress=True),
        Run("routing", (), "NO_IN_USE_AFTER_A_KILL"),
        Run("apply", ("NX=1", "LIVE"), progress=True),
    ],
    ids=lambda run: f"{run.model}-{run.title}",
)
def test_rules_are_needed(run: Run) -> None:
    outcome, right = judged(run, verify(run))
    assert right, outcome
