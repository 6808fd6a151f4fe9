"""The short form of `make chaos ONLY=brokers`: the transaction coordinator is killed, and a leader hangs."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from infra.stack import Stack
from tests.chaos.brokers import FAULTS, play, table

pytestmark = pytest.mark.stack


@pytest.mark.long
def test_topic_has_each_change_once_while_brokers_die_and_hang(stack: Stack, tmp_path: Path) -> None:
    names = list(FAULTS)[:2]
    story, phases = play(stack, tmp_path, 1, iter(names))
    print(story)
    Console(width=110).print(table(phases))
    assert story["faults"] == 2
    assert story["changes"] > 0
    assert [phase.name for phase in phases] == ["nothing", *names]
    assert table(phases).row_count == 3
