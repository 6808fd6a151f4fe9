"""The time that a comparison still takes, by the rates of both sides."""

from __future__ import annotations

import structlog

from consumers.compare.time_left import Progress
from infra.service import log


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_left_is_that_of_the_slower_side_and_said_soon_after_the_start() -> None:
    clock, nothing = Clock(), {"rows": 0, "records": 0}
    progress = Progress({"rows": 1_000_000_000, "records": 1_000}, nothing, log.get(), clock)
    assert progress.seconds_left is None
    with structlog.testing.capture_logs() as lines:
        clock.now += 1
        progress.reached("records", 900)
        progress.reached("rows", 250_000)
        assert lines == []
        clock.now += 1
        progress.reached("rows", 500_000)
        clock.now += 10
        progress.reached("rows", 2_500_000)
    said = [(line["event"], line["rows"], line["records"], line["seconds_left"]) for line in lines]
    assert said == [("comparison estimated", 500_000, 900, 3998), ("comparing", 2_500_000, 900, 4788)]


def test_what_an_earlier_process_read_does_not_count_for_the_rate() -> None:
    clock = Clock()
    progress = Progress({"rows": 1_000}, {"rows": 900}, log.get(), clock)
    clock.now += 10
    progress.reached("rows", 910)
    assert progress.seconds_left == 90
    progress.reached("rows", 1_200)  # an estimate that was too low
    assert progress.seconds_left == 0
