from __future__ import annotations

import pytest

from consumers.pace.pacing import Pacing
from infra.settings.model import MigrationSettings


class Clock:
    """A clock that advances only when set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def pacing(clock: Clock | None = None, **settings: float | bool) -> Pacing:
    return Pacing(MigrationSettings.model_validate(settings), clock or Clock())


def test_fixed_size_is_unchanged() -> None:
    pace = pacing(adaptive=False, sub_batch_size=7)
    for _ in range(50):
        assert pace.done(7, 9.0) == 0.0
    pace.timed_out()
    assert pace.limit == 7


def test_adaptive_size_follows_full_transactions_up_to_a_quarter_of_the_batch() -> None:
    pace = pacing(sub_batch_size=100, batch_size=600, transaction_ms=100)
    for _ in range(30):
        pace.done(99, 0.03)
    assert pace.limit == 100, "none was full"
    for _ in range(20):
        pace.done(100, 0.03)
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


def test_size_doubles_at_first_while_transactions_take_a_quarter_of_their_target() -> None:
    pace = pacing(sub_batch_size=100, transaction_ms=200)
    sizes = []
    for seconds in (0.03, 0.051, 0.05, 0.05, 0.05, 0.05, 0.05):
        pace.done(pace.limit, seconds)
        sizes.append(pace.limit)
    assert sizes == [200, 200, 400, 800, 1_600, 2_500, 2_500]


def test_size_does_not_double_after_a_timeout_or_once_the_optimizer_has_its_transactions() -> None:
    pace = pacing(sub_batch_size=100, transaction_ms=200)
    pace.timed_out()
    pace.done(pace.limit, 0.01)
    assert pace.limit == 75
    pace = pacing(sub_batch_size=100, transaction_ms=200)
    for _ in range(19):
        pace.done(100, 0.1)
    pace.done(100, 0.1)
    pace.done(pace.limit, 0.01)
    assert pace.limit < 200


def test_slow_database_does_not_shrink_transactions_to_single_rows() -> None:
    pace = pacing(sub_batch_size=100, transaction_ms=2)
    for _ in range(200):
        pace.done(pace.limit, 0.5)
    assert pace.limit == 10
    small = pacing(sub_batch_size=3, transaction_ms=2)
    for _ in range(200):
        small.done(small.limit, 0.5)
    assert small.limit == 3


def test_pause_follows_each_transaction_with_changes() -> None:
    pace = pacing(pause_ms=250)
    assert pace.done(10, 1.0) == 0.25
    assert pace.done(0, 1.0) == 0.0


def test_rate_is_kept_on_average_without_burst_after_idle_time() -> None:
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


def test_transaction_has_at_most_one_second_of_the_rate() -> None:
    assert pacing(max_rate=30, sub_batch_size=50).limit == 30
    assert pacing(max_rate=0.5, sub_batch_size=50).limit == 1


def test_pace_of_the_operator_is_followed_and_ends_with_it() -> None:
    clock = Clock()
    pace = pacing(clock, max_rate=100, transaction_ms=100)
    pace.follow(0.5, None)
    assert pace.limit == 1
    assert pace.done(1, 0.0) == 2.0
    pace.follow(0.5, None)
    assert pace.done(1, 0.0) == 4.0, "the same pace changes nothing"
    pace.follow(10.0, 50)
    assert pace.pace == (10.0, 0.05)
    assert pace.done(1, 0.0) == pytest.approx(0.1), "what the former rate required does not count"
    pace.follow(None, None)
    assert pace.pace == (100, 0.1)
    pace.follow(0.0, None)
    assert pace.done(1000, 0.0) == 0.0


def test_pace_without_adaptive_transactions_is_a_rate_alone() -> None:
    pace = pacing(adaptive=False, sub_batch_size=7)
    pace.follow(3.0, 50)
    assert pace.pace == (3.0, None)
    assert pace.limit == 3
