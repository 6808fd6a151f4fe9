"""The checker finds nothing in a correct history, and shortens what it reports."""

from __future__ import annotations

from dataclasses import replace

from schemas.positions import Lsn
from tests.chaos.path.checker import find_faults, shrunk, verdict
from tests.chaos.path.histories import (
    Event,
    Write,
)
from tests.chaos.path.small_history import COMMITS, EFFECTS, EVENTS, GOOD, LOG, kinds


def test_correct_history_has_no_fault() -> None:
    assert kinds(GOOD) == set()
    assert verdict(GOOD) is None


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
