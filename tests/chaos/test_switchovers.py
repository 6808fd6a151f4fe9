"""The short form of `make chaos ONLY=switchovers`: some runs of moves that are killed, aborted and led astray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack import EmbeddedStack, embedded_stack
from tests.chaos.switchovers import play_round

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedStack]:
    with embedded_stack() as stack:
        yield stack


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_one_owner_at_every_instant_and_every_write_once(own: EmbeddedStack, tmp_path: Path, seed: int) -> None:
    """Among them are a fresh slot and a synchronized one, a second move from the same database, and one back again."""
    story = play_round(own, tmp_path, seed)
    assert story["writes"] > 0
