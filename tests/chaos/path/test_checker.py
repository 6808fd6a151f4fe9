"""The history checker finds each kind of broken promise in a small history, and none in a correct one."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from schemas.positions import Lsn
from tests.chaos.path.checker import find_faults, shrunk, verdict
from tests.chaos.path.histories import (
    COPIES,
    RESETS,
    Effect,
    Event,
    Evidence,
    Lead,
    Outcome,
    Pause,
    StatusReport,
    Write,
)
from tests.chaos.witness import Move

RESETTING = "headrace consume skip_resets"
ASKED, DONE, OVER = "a/import_skipped/2", "a/default/", "b/import_done/"

# Row 7 is inserted by 100 as one to be reset, reset by 200, written by 101 and deleted by 102.
LOG = [
    Write(1, 100, "c", 7, None, ASKED),
    Write(2, 200, "u", 7, ASKED, DONE, application=RESETTING, name="main", owner="main"),
    Write(3, 101, "u", 7, DONE, OVER),
    Write(4, 102, "d", 7, OVER, None),
]
COMMITS = {
    100: Lsn(1000),
    200: Lsn(1500),
    201: Lsn(1510),
    101: Lsn(2000),
    202: Lsn(2100),
    203: Lsn(2200),
    102: Lsn(3000),
}
COMMITS |= {204: Lsn(3100), 205: Lsn(3200)}
EVENTS = [
    Event(0, 0, "c", 7, ASKED, Lsn(1000), 0, 100),
    Event(0, 2, "u", 7, DONE, Lsn(1500), 0, 200),
    Event(0, 4, "u", 7, OVER, Lsn(2000), 0, 101),
    Event(0, 6, "d", 7, None, Lsn(3000), 0, 102),
    Event(0, 7, "tombstone", 7),
]
EFFECTS = [
    Effect(1, 201, 7, "c", Lsn(1000), 0, 10.0, name="main", owner="main"),
    Effect(2, 202, 7, "u", Lsn(1500), 0, 11.0, name="main", owner="main"),
    Effect(3, 202, 7, "u", Lsn(2000), 0, 11.0, name="main", owner="main"),
    Effect(4, 204, 7, "d", Lsn(3000), 0, 12.0, name="main", owner="main"),
]
MOVES = {
    RESETS: [Move(190, 0, None, 0), Move(200, 0, 0, 2), Move(203, 0, 2, 6), Move(205, 0, 6, 9)],
    COPIES: [Move(190, 0, None, 0), Move(201, 0, 0, 2), Move(202, 0, 2, 6), Move(204, 0, 6, 9)],
}
GOOD = Evidence(
    log=LOG,
    commits=COMMITS,
    events=EVENTS,
    effects=EFFECTS,
    moves=MOVES,
    transactions={
        "t1": Outcome.ACKNOWLEDGED,
        "t2": Outcome.ROLLED_BACK,
        "t3": Outcome.IN_DOUBT,
        "t4": Outcome.IN_DOUBT,
    },
    found={"t1", "t3"},
    settled=Lsn(4000),
    ends={0: 9},
    ledger={RESETS: {0: 9}, COPIES: {0: 9}},
    committed={RESETS: {0: 9}, COPIES: {0: 9}},
    leads=[Lead("Kafka's offset", 5, 5), Lead("the slot", 10, 30)],
    reports=[StatusReport(COPIES, {0: 9}, 13.0), StatusReport(COPIES, {0: 6}, 11.0)],
)


def kinds(evidence: Evidence) -> set[str]:
    return {fault.kind for fault in find_faults(evidence)}


def test_correct_history_has_no_fault() -> None:
    assert kinds(GOOD) == set()
    assert verdict(GOOD) is None


class TestApplicationLog:
    def test_acknowledged_commit_that_was_lost_is_a_fault(self) -> None:
        assert kinds(replace(GOOD, found={"t3"})) == {"acknowledged but not in the database"}

    def test_rolled_back_transaction_in_the_database_is_a_fault(self) -> None:
        assert kinds(replace(GOOD, found={"t1", "t2", "t3"})) == {"rolled back but in the database"}

    def test_commit_in_doubt_may_be_in_the_database_or_not(self) -> None:
        assert kinds(replace(GOOD, found={"t1", "t4"})) == set()

    def test_transaction_missing_from_the_log_is_a_fault(self) -> None:
        assert kinds(replace(GOOD, found={"t1", "t9"})) == {"in the database but never written"}


class TestPublished:
    def test_change_missing_from_the_topic_is_a_fault(self) -> None:
        events = [event for event in EVENTS if event.xid != 101]
        found = kinds(replace(GOOD, events=events))
        assert "committed but not published" in found
        assert "applied but not in the topic" in found

    def test_last_change_missing_from_the_topic_is_a_fault(self) -> None:
        small = replace(GOOD, events=EVENTS[:3], effects=EFFECTS[:3])
        assert kinds(small) == {"committed but not published"}

    def test_change_committed_after_settling_may_be_missing(self) -> None:
        assert kinds(replace(GOOD, events=EVENTS[:3], effects=EFFECTS[:3], settled=Lsn(2500))) == set()

    def test_change_published_twice_is_a_fault(self) -> None:
        again = [*EVENTS[:3], EVENTS[2]._replace(offset=5), *EVENTS[3:]]
        assert {"published twice or out of order", "position went back"} <= kinds(replace(GOOD, events=again))

    def test_changes_of_a_row_out_of_order_are_a_fault(self) -> None:
        turned = [EVENTS[0], EVENTS[2]._replace(offset=2), EVENTS[1]._replace(offset=4), *EVENTS[3:]]
        assert {"published twice or out of order", "committed but not published"} <= kinds(replace(GOOD, events=turned))

    def test_change_never_in_the_database_is_a_fault(self) -> None:
        other = [EVENTS[0], EVENTS[1], EVENTS[2]._replace(value="x/import_done/"), *EVENTS[3:]]
        assert "published but never in the database" in kinds(replace(GOOD, events=other))

    def test_change_of_an_uncommitted_transaction_is_a_fault(self) -> None:
        commits = {xid: lsn for xid, lsn in COMMITS.items() if xid != 101}
        assert "published but never committed" in kinds(replace(GOOD, commits=commits))

    def test_change_at_another_position_than_its_commit_is_a_fault(self) -> None:
        other = [EVENTS[0], EVENTS[1], EVENTS[2]._replace(lsn=Lsn(2001)), *EVENTS[3:]]
        assert "published at another position" in kinds(replace(GOOD, events=other))

    def test_row_in_two_partitions_is_a_fault(self) -> None:
        other = [*EVENTS[:2], EVENTS[2]._replace(partition=1), *EVENTS[3:]]
        assert "one row in two partitions" in kinds(replace(GOOD, events=other))

    def test_change_after_the_handover_is_a_fault(self) -> None:
        assert kinds(replace(GOOD, given_away=Lsn(2500))) == {"published after the handover"}

    def test_delete_without_its_tombstone_is_a_fault(self) -> None:
        assert kinds(replace(GOOD, events=EVENTS[:4])) == {"a delete without its tombstone"}

    def test_tombstone_without_a_delete_is_a_fault(self) -> None:
        other = [EVENTS[0], Event(0, 1, "tombstone", 7), *EVENTS[1:]]
        assert kinds(replace(GOOD, events=other)) == {"a tombstone without its delete"}

    def test_changed_key_is_a_delete_and_a_create_at_one_position(self) -> None:
        log = [*LOG[:2], Write(3, 101, "d", 7, DONE, None), Write(4, 101, "c", 8, None, OVER)]
        events = [
            *EVENTS[:2],
            Event(0, 4, "d", 7, None, Lsn(2000), 0, 101),
            Event(0, 5, "tombstone", 7),
            Event(1, 0, "c", 8, OVER, Lsn(2000), 0, 101),
        ]
        effects = [*EFFECTS[:2], EFFECTS[2]._replace(op="d"), EFFECTS[3]._replace(key=8, op="c", lsn=Lsn(2000))]
        moves = {name: [*made, Move(190, 1, None, 0), Move(204, 1, 0, 1)] for name, made in MOVES.items()}
        changed = replace(GOOD, log=log, events=events, effects=effects, moves=moves, reports=())
        assert kinds(changed) == set()
        assert kinds(replace(changed, events=events[:4], effects=effects[:3])) == {"committed but not published"}


class TestTruncates:
    LOG = (*LOG[:3], Write(4, 102, "t", None, None, None))
    EVENTS = (
        *EVENTS[:3],
        Event(0, 6, "t", None, None, Lsn(3000), 0, 102),
        Event(1, 0, "t", None, None, Lsn(3000), 0, 102),
    )
    EVIDENCE = replace(
        GOOD, log=LOG, events=EVENTS, effects=EFFECTS[:3], ends={0: 9, 1: 2}, ledger={}, committed={}, reports=()
    )

    def test_truncate_in_every_partition_is_no_fault(self) -> None:
        assert kinds(self.EVIDENCE) == set()

    def test_truncate_missing_from_a_partition_is_a_fault(self) -> None:
        assert kinds(replace(self.EVIDENCE, events=self.EVENTS[:4])) == {"truncate lost or doubled"}

    def test_truncate_before_a_change_that_it_follows_is_a_fault(self) -> None:
        turned = [*EVENTS[:2], self.EVENTS[3]._replace(offset=4), EVENTS[2]._replace(offset=6), self.EVENTS[4]]
        assert "committed but not published" in kinds(replace(self.EVIDENCE, events=turned))

    def test_truncate_of_a_table_without_the_row_needs_no_change(self) -> None:
        log = [Write(0, 99, "t", None, None, None), *self.LOG]
        first = [Event(partition, 0, "t", None, None, Lsn(900), 0, 99) for partition in (0, 1)]
        moved = [event._replace(offset=event.offset + 1) for event in self.EVENTS]
        evidence = replace(
            self.EVIDENCE,
            log=log,
            commits={**COMMITS, 99: Lsn(900)},
            events=[*first, *moved],
            moves={},
            effects=[],
            settled=Lsn(0),
            reports=(),
        )
        assert kinds(evidence) == {"changed without an event"}, "the ledger was not checked"

    def test_truncate_before_the_first_record_of_a_row_is_no_change_of_it(self) -> None:
        log = [
            Write(1, 100, "c", 7, None, ASKED),
            Write(2, 101, "d", 7, ASKED, None),
            Write(3, 102, "t", None, None, None),
            Write(4, 103, "c", 7, None, OVER),
        ]
        truncate = Event(0, 0, "t", None, None, Lsn(3000), 0, 102)
        read = Event(0, 1, "r", 7, OVER, Lsn(3050), 1)
        evidence = Evidence(
            log=log,
            commits={**COMMITS, 103: Lsn(3100)},
            events=[truncate, read],
            copied=Lsn(2500),
            rereads=1,
            ends={0: 2},
        )
        assert "committed but not published" not in kinds(evidence)
        assert "committed but not published" in kinds(replace(evidence, copied=Lsn(900))), "the row was never copied"

    def test_truncate_that_a_snapshot_row_has_seen_is_published_with_what_follows_it(self) -> None:
        log = [
            LOG[0],
            Write(2, 101, "u", 7, ASKED, DONE),
            Write(3, 102, "t", None, None, None),
            Write(4, 103, "c", 7, None, OVER),
        ]
        events = [
            EVENTS[0],
            Event(0, 1, "r", 7, OVER, Lsn(1000), 1),
            Event(0, 2, "t", None, None, Lsn(3000), 0, 102),
            Event(0, 3, "c", 7, OVER, Lsn(3100), 0, 103),
        ]
        evidence = Evidence(log=log, commits={**COMMITS, 103: Lsn(3100)}, events=events, rereads=1, ends={0: 4})
        published = "published twice or out of order"
        assert published not in kinds(evidence)
        assert "committed but not published" not in kinds(evidence)
        assert "committed but not published" in kinds(replace(evidence, events=events[:3]))
        late = [events[0], Event(0, 1, "r", 7, ASKED, Lsn(1000), 1), *events[2:]]
        assert "committed but not published" in kinds(replace(evidence, events=late)), "the update is in no record"
        assert published in kinds(replace(evidence, events=[*events, events[3]._replace(offset=4)]))


class TestRowsThatAreRead:
    def test_first_snapshot_covers_earlier_commits(self) -> None:
        first = Event(0, 0, "r", 7, DONE, Lsn(1600), 1)
        effects = [EFFECTS[0]._replace(op="r", lsn=Lsn(1600), ordinal=1), *EFFECTS[2:]]
        evidence = replace(GOOD, events=[first, *EVENTS[2:]], effects=effects, copied=Lsn(1700))
        assert "committed but not published" not in kinds(evidence)
        assert "committed but not published" in kinds(replace(evidence, copied=Lsn(1200)))

    def test_row_deleted_before_it_was_copied_needs_no_event(self) -> None:
        log = [LOG[0], LOG[2]._replace(old=ASKED), LOG[3]]
        evidence = replace(GOOD, log=log, events=[], effects=[], moves={}, copied=Lsn(3500), reports=())
        assert kinds(evidence) == set()
        assert kinds(replace(evidence, copied=Lsn(2500))) == {"committed but not published"}

    def test_requested_resnapshot_of_a_row_is_no_fault(self) -> None:
        again = Event(0, 5, "r", 7, OVER, Lsn(2000), 1)
        effect = Effect(9, 202, 7, "r", Lsn(2000), 1, 11.0, name="main", owner="main")
        evidence = replace(
            GOOD,
            events=[*EVENTS[:3], again, *EVENTS[3:]],
            effects=[*EFFECTS[:3], effect, *EFFECTS[3:]],
            rereads=1,
        )
        assert kinds(replace(evidence, rereads=1, copied=Lsn(1))) == set()

    def test_snapshot_row_that_repairs_a_lost_change_is_a_fault(self) -> None:
        repaired = Event(0, 4, "r", 7, OVER, Lsn(2050), 1)
        evidence = replace(GOOD, events=[*EVENTS[:2], repaired, *EVENTS[3:]])
        assert "committed but not published" in kinds(evidence)

    def test_resnapshot_without_a_request_is_a_fault(self) -> None:
        twice = [EVENTS[0], *(Event(0, offset, "r", 7, ASKED, Lsn(1000), 1) for offset in (1, 2)), *EVENTS[1:]]
        assert "re-snapshotted without a request" in kinds(replace(GOOD, events=twice))


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


class TestShrinking:
    def test_verdict_shrinks_to_the_broken_row(self) -> None:
        others = [Write(number, 1000 + number, "c", number, None, f"{number}/x/") for number in range(20, 60)]
        commits = COMMITS | {write.xid: Lsn(5000 + write.sequence) for write in others}
        events = [
            Event(1, n, "c", write.key, write.value, commits[write.xid], 0, write.xid) for n, write in enumerate(others)
        ]
        evidence = replace(
            GOOD, log=[*LOG, *others], commits=commits, events=[*EVENTS[:3], *events], effects=EFFECTS[:3], reports=()
        )
        (fault,) = [fault for fault in find_faults(evidence) if fault.key == 7]
        small = shrunk(evidence, fault)
        assert {write.key for write in small.log} == {7}
        assert len(small.log) == 1, "earlier changes are left out"

    def test_verdict_contains_the_rows_history(self) -> None:
        verdict_text = verdict(replace(GOOD, effects=[*EFFECTS, EFFECTS[3]]))
        assert verdict_text is not None
        assert "1 times: applied twice" in verdict_text
        assert "d to None by application, transaction 102" in verdict_text
