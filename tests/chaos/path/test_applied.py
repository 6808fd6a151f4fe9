"""The checker finds events that were applied wrongly, and rows that were changed wrongly."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from schemas.positions import Lsn
from tests.chaos.path.histories import (
    COPIES,
    RESETS,
    Pause,
)
from tests.chaos.path.small_history import ASKED, COMMITS, EFFECTS, EVENTS, GOOD, LOG, MOVES, OVER, kinds
from tests.chaos.witness import Move


class TestApplied:
    def test_event_applied_twice_is_a_fault(self) -> None:
        assert kinds(replace(GOOD, effects=[*EFFECTS, EFFECTS[3]])) == {"applied twice"}

    def test_event_passed_but_not_applied_is_a_fault(self) -> None:
        found = kinds(replace(GOOD, effects=[*EFFECTS[:2], EFFECTS[3]], reports=()))
        assert found == {"passed but not applied"}

    def test_event_never_applied_is_a_fault(self) -> None:
        moves = {**MOVES, COPIES: MOVES[COPIES][:3]}
        found = kinds(replace(GOOD, effects=EFFECTS[:3], moves=moves, reports=()))
        assert found == {"never applied"}

    def test_event_applied_outside_the_ledgers_transaction_is_a_fault(self) -> None:
        effects = [*EFFECTS[:3], EFFECTS[3]._replace(xid=205)]
        assert kinds(replace(GOOD, effects=effects)) == {"not in the transaction that moved the ledger"}

    def test_effect_before_its_event_was_visible_is_a_fault(self) -> None:
        effects = [EFFECTS[0]._replace(visible=False), *EFFECTS[1:]]
        assert kinds(replace(GOOD, effects=effects)) == {"applied before it was visible"}

    def test_effects_out_of_order_are_a_fault(self) -> None:
        effects = [EFFECTS[0], EFFECTS[2], EFFECTS[1], EFFECTS[3]]
        assert kinds(replace(GOOD, effects=effects)) == {"applied out of order"}

    def test_effect_in_a_database_that_is_not_the_owner_is_a_fault(self) -> None:
        effects = [*EFFECTS[:3], EFFECTS[3]._replace(owner="elsewhere")]
        assert kinds(replace(GOOD, effects=effects)) == {"written without ownership"}
        log = [LOG[0], LOG[1]._replace(name="copy"), *LOG[2:]]
        assert kinds(replace(GOOD, log=log)) == {"written without ownership"}

    def test_effect_of_a_paused_migration_is_a_fault(self) -> None:
        effects = [*EFFECTS[:3], EFFECTS[3]._replace(began=11.6)]
        paused = replace(GOOD, effects=effects, pauses=[Pause(COPIES, 11.5, inf, 12.5)])
        assert kinds(paused) == {"written while it was paused"}
        assert kinds(replace(paused, pauses=[Pause(RESETS, 11.5, inf, 12.5)])) == set()
        assert kinds(replace(paused, pauses=[Pause(COPIES, 11.5, inf, 11.9)])) == set()

    def test_transaction_begun_before_a_pause_may_end_until_none_is_reported_in_progress(self) -> None:
        effects = [*EFFECTS[:3], EFFECTS[3]._replace(began=11.4)]
        paused = replace(GOOD, effects=effects, pauses=[Pause(COPIES, 11.5, inf, 12.5)])
        assert kinds(paused) == set()
        quiet = replace(paused, pauses=[Pause(COPIES, 11.5, 11.8, 12.5)])
        assert kinds(quiet) == {"written while it was paused"}


class TestResets:
    def test_wanted_row_passed_but_not_changed_is_a_fault(self) -> None:
        evidence = replace(GOOD, log=[LOG[0]], events=EVENTS[:1], effects=EFFECTS[:1], reports=())
        assert kinds(evidence) == {"passed while the row was wanted"}

    def test_wanted_row_repaired_later_by_the_application_is_a_fault(self) -> None:
        """The end state is right, but the promise was broken in between."""
        log = [LOG[0], LOG[2]._replace(old=ASKED), LOG[3]]
        events = [EVENTS[0], *EVENTS[2:]]
        effects = [EFFECTS[0], *EFFECTS[2:]]
        assert kinds(replace(GOOD, log=log, events=events, effects=effects)) == {"passed while the row was wanted"}

    def test_wanted_row_overwritten_by_the_application_is_no_fault(self) -> None:
        log = [LOG[0], LOG[2]._replace(old=ASKED), LOG[3]]
        events = [EVENTS[0], *EVENTS[2:]]
        effects = [EFFECTS[0], *EFFECTS[2:]]
        commits = {**COMMITS, 101: Lsn(1400)}
        late = [EVENTS[0], EVENTS[2]._replace(lsn=Lsn(1400)), *EVENTS[3:]]
        done = [effects[0], effects[1]._replace(lsn=Lsn(1400)), *effects[2:]]
        assert events
        assert kinds(replace(GOOD, log=log, events=late, effects=done, commits=commits)) == set()

    def test_row_changed_after_its_event_was_passed_is_a_fault(self) -> None:
        """For example by a sweep over the table that silently repairs omitted rows."""
        moves = {**MOVES, RESETS: [Move(190, 0, None, 0), Move(189, 0, 0, 2), *MOVES[RESETS][2:]]}
        assert kinds(replace(GOOD, moves=moves, commits={**COMMITS, 189: Lsn(1100)})) == {"changed without an event"}

    def test_change_of_an_unwanted_row_is_a_fault(self) -> None:
        log = [LOG[0]._replace(value=OVER), LOG[1]._replace(old=OVER), *LOG[2:]]
        events = [EVENTS[0]._replace(value=OVER), *EVENTS[1:]]
        assert "changed wrongly" in kinds(replace(GOOD, log=log, events=events))

    def test_wanted_row_whose_event_was_never_passed_is_a_fault(self) -> None:
        evidence = replace(
            GOOD,
            log=[LOG[0]],
            events=EVENTS[:1],
            effects=EFFECTS[:1],
            moves={**MOVES, RESETS: MOVES[RESETS][:1]},
            reports=(),
        )
        assert kinds(evidence) == {"wanted but never changed"}
