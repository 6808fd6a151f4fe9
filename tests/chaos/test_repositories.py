"""A small round of tests/chaos/repositories.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.stack import Stack
from tests.chaos.movers import POINTS
from tests.chaos.repositories import play
from tests.consumers.gitserver.driver import step_at
from tests.consumers.gitserver.kinds import KINDS

pytestmark = pytest.mark.stack

_SOME = ("plain", "packed_refs", "head_is_a_symbolic_link", "lfs", "leftover_whole_but_stale", "it_lends_objects")


@pytest.mark.parametrize("point", POINTS)
def test_the_product_has_each_step_at_which_a_consumer_is_killed(point: str) -> None:
    assert callable(step_at(point)[2])


@pytest.mark.long
def test_last_copy_survives_while_consumers_are_killed(stack: Stack, tmp_path: Path) -> None:
    story = play(stack, tmp_path, 1, kinds=[KINDS[each] for each in _SOME], kills=6)
    assert story["kills"] >= 6
    assert story["pushes"] > 0


@pytest.mark.long
@pytest.mark.parametrize("plant", ["late_pushes_are_not_carried_over", "deletions_are_not_carried_over"])
def test_planted_fault_of_the_moves_is_found(stack: Stack, tmp_path: Path, plant: str) -> None:
    def rounds() -> None:
        for seed in range(1, 6):
            play(stack, tmp_path, seed, kinds=[KINDS[each] for each in _SOME], kills=60, plant=plant)

    # A round shows the fault if a push comes at the right moment, which most rounds have.
    with pytest.raises(AssertionError, match="refs/heads/pushed/"):
        rounds()
