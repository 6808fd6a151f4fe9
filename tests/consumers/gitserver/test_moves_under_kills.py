"""tests/chaos/moves.py, small."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.stack import Stack
from tests.chaos.moves import play

pytestmark = pytest.mark.stack


@pytest.mark.long
def test_readers_never_fail_and_pushes_are_never_lost_while_consumers_are_killed(stack: Stack, tmp_path: Path) -> None:
    story = play(stack, tmp_path, 1, repositories=30, kills=4)
    assert story["reads"] > 0
    assert story["pushes"] > 0
