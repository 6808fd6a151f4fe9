"""Members that join, leave and are killed at random while the broker restarts: the short form of a chaos round."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.stack import Stack
from tests.chaos.members import play

pytestmark = pytest.mark.stack


def test_members_come_and_go_while_the_broker_restarts_and_each_effect_happens_once(
    stack: Stack, tmp_path: Path
) -> None:
    story = play(stack, tmp_path, seed=4, most=4, moves=14, restarts=1)
    # How many there were depends on how long the broker was away; that each has had its end does not.
    assert story["joined"] == story["left"] + story["killed"] + story["turned away"] > 1
