"""A small correct history of one row, which the tests of the checker break."""

from __future__ import annotations

from schemas.positions import Lsn
from tests.chaos.path.checker import find_faults
from tests.chaos.path.histories import (
    COPIES,
    RESETS,
    Effect,
    Event,
    Evidence,
    Lead,
    Outcome,
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
