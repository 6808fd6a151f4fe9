"""The history check of `make chaos ONLY=visibility` finds each fault, and none in a correct history."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.chaos.history import Effect, Event, Moves, Poll, find_faults

STATES = ("skipped", "default")


@dataclass
class Found:
    """A history in which the event at partition 1, offset 20 wanted row 7, and transaction 500 changed it."""

    wanted: set[int] = field(default_factory=lambda: {7})
    events: dict[int, list[Event]] = field(default_factory=lambda: {7: [Event(1, 20, 10.0, 10.1)]})
    effects: dict[int, list[Effect]] = field(default_factory=lambda: {7: [Effect(12.0, 500, *STATES)]})
    moves: list[tuple[int, int, int | None, int, int]] = field(
        default_factory=lambda: [(1, 1, None, 0, 400), (1, 1, 0, 20, 450), (1, 1, 20, 31, 500), (1, 1, 31, 40, 510)]
    )
    polls: list[Poll] = field(default_factory=lambda: [Poll("m", "caught_up", {1: 31}, 12.5)])

    def kinds(self) -> list[str]:
        moves = Moves()
        for move in self.moves:
            moves.add(*move)
        found = find_faults(self.wanted, STATES, self.events, self.effects, moves, self.polls)
        return [fault.kind for fault in found]


def test_correct_history_has_no_fault() -> None:
    assert Found().kinds() == []


def test_unchanged_row_is_a_fault_of_the_row_and_of_status() -> None:
    assert Found(effects={}).kinds() == ["not changed once", "status reported caught up too early"]


def test_change_after_status_reported_caught_up_is_a_fault() -> None:
    assert Found(polls=[Poll("m", "caught_up", {1: 31}, 11.9)]).kinds() == ["status reported caught up too early"]


def test_status_may_report_caught_up_before_the_event_is_in_the_topic() -> None:
    assert Found(polls=[Poll("m", "caught_up", {1: 20}, 11.9)]).kinds() == []


def test_second_change_of_a_row_is_a_fault() -> None:
    effect = Effect(12.0, 500, *STATES)
    assert Found(effects={7: [effect, effect]}).kinds() == ["not changed once"]


def test_change_of_an_unwanted_row_is_a_fault() -> None:
    assert Found(wanted=set(), events={}).kinds() == ["changed but not wanted"]


def test_second_event_for_a_row_is_a_fault() -> None:
    event = Event(1, 20, 10.0, 10.1)
    assert Found(events={7: [event, event]}).kinds() == ["not exactly one event"]


@pytest.mark.parametrize("xid", [450, 510])
def test_change_by_another_transaction_than_the_one_passing_the_event_is_a_fault(xid: int) -> None:
    assert Found(effects={7: [Effect(12.0, xid, *STATES)]}).kinds() == ["passed by another transaction"]


@pytest.mark.parametrize(
    "move",
    [(1, 1, 40, 20, 520), (1, 1, 31, 50, 520), (2, 1, 40, 50, 520), (1, 1, None, 50, 520)],
    ids=["back", "not from its position", "another run", "restarted"],
)
def test_ledger_move_that_is_not_forward_is_a_fault(move: tuple[int, int, int | None, int, int]) -> None:
    found = Found()
    found.moves.append(move)
    assert found.kinds() == ["ledger did not move forward"]


def test_change_to_a_wrong_value_is_a_fault() -> None:
    assert Found(effects={7: [Effect(12.0, 500, "skipped", "native")]}).kinds() == ["changed wrongly"]
