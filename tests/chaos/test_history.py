"""Each fault that `make chaos ONLY=visibility` looks for is found; without a fault nothing is."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.chaos.history import Effect, Event, Moves, Poll, find_faults

STATES = ("skipped", "default")


@dataclass
class Found:
    """A history in which row 7 was wanted by the event at partition 1, offset 20, and changed by transaction 500."""

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


def test_a_history_without_a_fault() -> None:
    assert Found().kinds() == []


def test_a_row_that_was_never_changed_though_status_said_that_nothing_is_left() -> None:
    assert Found(effects={}).kinds() == ["not changed once", "status said that nothing is left"]


def test_a_row_that_was_changed_after_status_said_that_nothing_is_left() -> None:
    assert Found(polls=[Poll("m", "caught_up", {1: 31}, 11.9)]).kinds() == ["status said that nothing is left"]


def test_status_may_say_so_before_the_event_is_in_the_topic() -> None:
    assert Found(polls=[Poll("m", "caught_up", {1: 20}, 11.9)]).kinds() == []


def test_a_row_that_was_changed_twice() -> None:
    effect = Effect(12.0, 500, *STATES)
    assert Found(effects={7: [effect, effect]}).kinds() == ["not changed once"]


def test_a_row_that_nobody_wanted_changed() -> None:
    assert Found(wanted=set(), events={}).kinds() == ["changed, and not wanted"]


def test_a_second_event_that_wanted_the_row() -> None:
    event = Event(1, 20, 10.0, 10.1)
    assert Found(events={7: [event, event]}).kinds() == ["not exactly one event"]


@pytest.mark.parametrize("xid", [450, 510])
def test_a_row_that_another_transaction_changed_than_the_one_that_passed_its_event(xid: int) -> None:
    assert Found(effects={7: [Effect(12.0, xid, *STATES)]}).kinds() == ["passed by another transaction"]


@pytest.mark.parametrize(
    "move",
    [(1, 1, 40, 20, 520), (1, 1, 31, 50, 520), (2, 1, 40, 50, 520), (1, 1, None, 50, 520)],
    ids=["back", "not from where it is", "another run", "begun again"],
)
def test_a_ledger_that_went_another_way_than_forward(move: tuple[int, int, int | None, int, int]) -> None:
    found = Found()
    found.moves.append(move)
    assert found.kinds() == ["a move of the ledger"]


def test_a_row_that_became_something_else() -> None:
    assert Found(effects={7: [Effect(12.0, 500, "skipped", "native")]}).kinds() == ["changed wrongly"]
