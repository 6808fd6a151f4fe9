"""tests/chaos/repositories.py, small."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.stack import Stack
from tests.chaos.repositories import play
from tests.consumers.moving.kinds import KINDS

pytestmark = pytest.mark.stack

_SOME = ("plain", "packed_refs", "head_is_a_symbolic_link", "lfs", "leftover_whole_but_stale", "it_lends_objects")


def test_no_only_copy_is_lost_while_members_are_killed(stack: Stack, tmp_path: Path) -> None:
    story = play(stack, tmp_path, 1, kinds=[KINDS[each] for each in _SOME], kills=6)
    assert story["kills"] >= 12
    assert story["pushes"] > 0
