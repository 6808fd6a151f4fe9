"""The short form of `make chaos ONLY=switchovers`: a few runs whose moves are killed, aborted and misdirected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack import EmbeddedStack, embedded_stack
from tests.chaos.switchovers import play_round

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedStack]:
    with embedded_stack(fsync=False) as stack:
        yield stack


@pytest.mark.long
@pytest.mark.parametrize("seed", [2, 3, 5])
def test_switchovers_keep_one_owner_and_publish_every_write_once(own: EmbeddedStack, tmp_path: Path, seed: int) -> None:
    """The seeds cover a fresh slot, a synchronized slot, a second move from the same database, and a move back."""
    story = play_round(own, tmp_path, seed)
    assert story["writes"] > 0
