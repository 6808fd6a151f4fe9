"""The verifications of the models in docs/explanation/models: each complete, and each without one rule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

MODELS: Final = Path(__file__).parents[2] / "docs/explanation/models"


@dataclass(frozen=True, slots=True)
class Run:
    """One verification of `model`; `without` a rule it has to find a counterexample.

    `progress` looks for an endless fair run in which a required event never happens, instead of a wrong state.
    """

    model: str
    defines: tuple[str, ...] = ()
    without: str | None = None
    progress: bool = False

    @property
    def source(self) -> Path:
        return MODELS / f"{self.model}.pml"

    @property
    def title(self) -> str:
        return self.without or ("complete, progress" if self.progress else "complete, safety")


SNAPSHOT: Final = Run("snapshot", ("NT=2",))
APPLY: Final = Run("apply", ("NX=2",))
APPLY_PROGRESS: Final = Run("apply", ("NX=2", "LIVE"), progress=True)
ROUTING: Final = Run("routing")

LEFT_OUT: Final = {
    SNAPSHOT: (
        "NO_BARRIER",
        "NO_UNSEEN_AT_BEGIN",
        "NO_RECORDED_UNSEEN",
        "NO_NOT_BEFORE",
        "NO_DROP_UNCOPIED",
        "NO_SNAPSHOT_RULE",
        "NO_LSN",
        "NO_LSN_AFTER",
        "NO_LOCK_FIRST",
        "NO_TRUNCATE_RULE",
        "NO_REREAD_RULES",
        "NO_REMEMBERED_KEYS",
        "NO_RECORDED_KEYS",
        "NO_FENCE",
        "NO_FENCE_FIRST",
        "NO_ONE_TRANSACTION",
        "NO_CONFIRM_AFTER",
        "NO_SKIP",
        "NO_ORDINAL",
        "NO_WAIT_FOR_CHUNKS",
        "NO_RANGE_ALONE",
        "NO_OWN_MOMENT",
        "NO_GAPS",
    ),
    APPLY: (
        "NO_VISIBILITY",
        "NO_ORDER",
        "NO_ONE_TRANSACTION",
        "NO_COMPARE",
        "NO_OWNER",
        "NO_LOCK",
        "NO_LOOK_AFTER_LOCK",
        "NO_CLOSE_ALONE",
        "NO_ID",
        "NO_RELEASE",
        "NO_GUARD",
        "NO_HANDOVER",
    ),
    APPLY_PROGRESS: ("NO_BRING_BACK", "NO_ASK_OTHERS"),
    ROUTING: (
        "NO_SECOND_HOME",
        "NO_ASK",
        "NO_COPY_FIRST",
        "NO_GRACE",
        "NO_CLOCK_AFTER_COMMIT",
        "NO_SECOND_CARRY",
        "NO_IN_USE",
        "NO_IN_USE_AFTER_A_KILL",
        "NO_PARTITION_LOCK",
        "NO_SESSION",
        "NO_STAYING",
    ),
}
"""The rules whose omission each verification tests; tests/models/test_runs.py compares them with the models' rules."""


def every_run() -> list[Run]:
    """Return all verifications: each complete model, followed by those without a rule."""
    return [
        run
        for whole, rules in LEFT_OUT.items()
        for run in (whole, *(Run(whole.model, whole.defines, rule, whole.progress) for rule in rules))
    ]
