"""The checker finds ledgers and offsets that disagree, and reports that were false."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.path.histories import (
    COPIES,
    Lead,
    StatusReport,
)
from tests.chaos.path.small_history import GOOD, MOVES, kinds
from tests.chaos.witness import Move


class TestLedgers:
    @pytest.mark.parametrize(
        "move",
        [Move(300, 0, 9, 5), Move(300, 0, 6, 12), Move(300, 0, None, 0), Move(300, 0, 9, 12, run=2)],
        ids=["back", "not from its position", "restarted", "another run"],
    )
    def test_ledger_move_that_is_not_forward_is_a_fault(self, move: Move) -> None:
        moves = {**MOVES, COPIES: [*MOVES[COPIES], move]}
        assert kinds(replace(GOOD, moves=moves)) == {"ledger did not move forward"}

    def test_ledger_before_the_end_is_a_fault(self) -> None:
        ledger = {**GOOD.ledger, COPIES: {0: 7}}
        found = kinds(replace(GOOD, ledger=ledger, committed=ledger))
        assert found == {"the ledger is not at the end"}

    def test_offset_that_differs_from_the_ledger_is_a_fault(self) -> None:
        assert kinds(replace(GOOD, committed={**GOOD.committed, COPIES: {0: 8}})) == {
            "Kafka's offset differs from the ledger"
        }

    @pytest.mark.parametrize("what", ["Kafka's offset", "the slot"])
    def test_follower_ahead_of_its_leader_is_a_fault(self, what: str) -> None:
        assert kinds(replace(GOOD, leads=[Lead(what, 6, 5)])) == {f"{what} is ahead"}

    def test_status_that_reported_caught_up_too_early_is_a_fault(self) -> None:
        assert kinds(replace(GOOD, reports=[StatusReport(COPIES, {0: 9}, 11.5)])) == {
            "status reported caught up too early"
        }
