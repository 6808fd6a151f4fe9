"""Consumers join, leave and are killed at random while the broker restarts: a short chaos round."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from infra.stack import Stack
from tests.chaos.members import play

pytestmark = pytest.mark.stack


def next_multixact(stack: Stack) -> int:
    """Return the multixact that the server would use next."""
    with psycopg.connect(stack.endpoints.dsn, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        row = connection.execute("SELECT next_multixact_id::text::bigint FROM pg_control_checkpoint()").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.long
def test_effects_happen_once_while_consumers_come_and_go_and_broker_restarts(stack: Stack, tmp_path: Path) -> None:
    before = next_multixact(stack)
    story = play(stack, tmp_path, seed=4, most=4, moves=14, restarts=1)
    # Their number depends on how long the broker was down; that each has ended does not.
    # A large database cannot afford a multixact per transaction.
    assert next_multixact(stack) == before
    assert story["joined"] == story["left"] + story["killed"] + story["turned away"] > 1
