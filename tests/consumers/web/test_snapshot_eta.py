"""Estimates when a snapshot is done, by what was seen of it within the last minute."""

from __future__ import annotations

import pytest

from consumers.web.snapshot_eta import SnapshotEta


@pytest.fixture
def eta() -> SnapshotEta:
    return SnapshotEta()


def test_time_left_is_that_of_the_chunks_that_are_left(eta: SnapshotEta) -> None:
    assert eta.estimate("main", 100.0, 10, 50) is None, "no pace is known yet"
    assert eta.estimate("main", 101.0, 10, 50) is None
    assert eta.estimate("main", 104.0, 12, 50) == 76.0
    assert eta.estimate("main", 108.0, 18, 50) == 32.0
    assert eta.estimate("other", 108.0, 18, 50) is None
    assert eta.estimate("main", 110.0, 50, 50) == 0


def test_pace_is_that_of_the_last_minute(eta: SnapshotEta) -> None:
    eta.estimate("main", 0.0, 0, 1_000)
    eta.estimate("main", 30.0, 300, 1_000)
    assert eta.estimate("main", 80.0, 350, 1_000) == 650.0
    assert eta.estimate("main", 140.0, 350, 1_000) is None, "throttled"


def test_another_snapshot_has_another_pace(eta: SnapshotEta) -> None:
    eta.estimate("main", 0.0, 100, 200)
    assert eta.estimate("main", 1.0, 0, 400) is None
    assert eta.estimate("main", 3.0, 1, 400) == 798.0
    eta.forget("main")
    assert eta.estimate("main", 4.0, 5, 400) is None
