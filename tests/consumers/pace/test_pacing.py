from __future__ import annotations

import pytest

from consumers.pace.pacing import Pacing
from infra.settings.model import MigrationSettings


class Clock:
    """Stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def pacing(clock: Clock | None = None, **settings: float | bool) -> Pacing:
    return Pacing(MigrationSettings.model_validate(settings), clock or Clock())


def test_a_fixed_size_stays() -> None:
    pace = pacing(adaptive=False, sub_batch_size=7)
    for _ in range(50):
        assert pace.done(7, 9.0) == 0.0
    pace.timed_out()
    assert pace.limit == 7


def test_an_adaptive_size_follows_the_time_of_full_transactions_up_to_a_quarter_of_the_batch() -> None:
    pace = pacing(sub_batch_size=100, batch_size=600, transaction_ms=100)
    for _ in range(30):
        pace.done(99, 0.001)
    assert pace.limit == 100, "none was full"
    for _ in range(20):
        pace.done(100, 0.001)
    assert pace.limit == 120
    for _ in range(20):
        pace.done(pace.limit, 0.001)
    assert pace.limit == 150
    for _ in range(60):
        pace.done(pace.limit, 1.0)
    assert pace.limit < 20
    before = pace.limit
    pace.timed_out()
    assert pace.limit <= before


def test_a_slow_database_does_not_make_transactions_of_single_rows() -> None:
    pace = pacing(sub_batch_size=100, transaction_ms=2)
    for _ in range(200):
        pace.done(pace.limit, 0.5)
    assert pace.limit == 10
    small = pacing(sub_batch_size=3, transaction_ms=2)
    for _ in range(200):
        small.done(small.limit, 0.5)
    assert small.limit == 3


def test_a_pause_follows_each_transaction_that_changed_something() -> None:
    pace = pacing(pause_ms=250)
    assert pace.done(10, 1.0) == 0.25
    assert pace.done(0, 1.0) == 0.0


def test_the_rate_is_kept_on_average_and_of_a_lull_a_tenth_of_a_second_is_made_up_for() -> None:
    clock = Clock()
    pace = pacing(clock, max_rate=100, sub_batch_size=50)
    rested = 0.0
    for _ in range(10):
        clock.now += 0.1
        rest = pace.done(50, 0.1)
        clock.now += rest
        rested += rest
    assert 0.1 * 10 + rested == pytest.approx(5.0)
    clock.now += 60.0
    assert pace.done(50, 0.1) == pytest.approx(0.3)
    clock.now += 0.4
    assert pace.done(50, 0.1) == pytest.approx(0.4)


def test_a_transaction_holds_no_more_than_a_second_of_the_rate() -> None:
    assert pacing(max_rate=30, sub_batch_size=50).limit == 30
    assert pacing(max_rate=0.5, sub_batch_size=50).limit == 1
