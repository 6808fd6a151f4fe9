"""Seed 001 on real servers: a gitlab schema moves to a promoted copy during a migration, under load and kills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack import EmbeddedStack, embedded_stack
from tests.consumers.members.failover import play

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedStack]:
    with embedded_stack(fsync=False) as stack:
        yield stack


@pytest.mark.long
@pytest.mark.parametrize(("seed", "synchronized"), [(1, True), (2, False)])
def test_switchover_under_load_changes_every_row_once_on_the_owner(
    own: EmbeddedStack, tmp_path: Path, seed: int, synchronized: bool
) -> None:
    """`make chaos` plays more rounds, with other seeds."""
    story = play(own, tmp_path, seed, synchronized=synchronized)
    assert story["writes"] > 0
