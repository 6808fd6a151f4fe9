from __future__ import annotations

import pytest

from consumers.pace.rates import Rate


class Clock:
    """A clock that advances only when set."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_first_second_returns_the_unsmoothed_rate(clock: Clock) -> None:
    rate = Rate(clock)
    clock.now += 0.5
    assert rate.add(100) == pytest.approx(200)
    assert rate.per_second == 0.0, "nothing is smoothed yet"


def test_first_full_window_becomes_the_rate(clock: Clock) -> None:
    rate = Rate(clock)
    clock.now += 1.0
    assert rate.add(300) == pytest.approx(300)


def test_new_window_has_four_tenths_of_the_weight(clock: Clock) -> None:
    rate = Rate(clock)
    clock.now += 1.0
    rate.add(1_000)
    clock.now += 2.0
    assert rate.add(4_000) == pytest.approx(0.4 * 2_000 + 0.6 * 1_000)


def test_rate_is_unchanged_within_a_window(clock: Clock) -> None:
    rate = Rate(clock)
    clock.now += 1.0
    rate.add(1_000)
    clock.now += 0.5
    assert rate.add(10_000) == pytest.approx(1_000)
