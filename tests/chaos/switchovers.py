"""Switchovers in mid-migration under load, with services and the switchover itself killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infra.stack import EmbeddedStack
from tests.consumers import failover


def play_round(stack: EmbeddedStack, directory: Path, seed: int) -> dict[str, Any]:
    """Play one round: every row that should change changes once, on the side that owns it."""
    return failover.play(stack, directory, seed, synchronized=seed % 2 == 1)
