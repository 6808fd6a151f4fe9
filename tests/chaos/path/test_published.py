"""The checker finds what is lost, doubled or out of order between the application and the topic."""

from __future__ import annotations

from dataclasses import replace

from schemas.positions import Lsn
from tests.chaos.path.histories import (
    Effect,
    Event,
    Evidence,
    Write,
)
from tests.chaos.path.small_history import ASKED, COMMITS, DONE, EFFECTS, EVENTS, GOOD, LOG, MOVES, OVER, kinds
from tests.chaos.witness import Move


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
