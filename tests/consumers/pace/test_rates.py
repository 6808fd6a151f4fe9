from __future__ import annotations

import pytest

from consumers.pace.rates import Rate


class Clock:
    """Stands still until it is moved."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_first_second_is_told_as_it_goes(clock: Clock) -> None:
    rate = Rate(clock)
    clock.now += 0.5
    assert rate.add(100) == pytest.approx(200)
    assert rate.per_second == 0.0, "nothing is smoothed yet"


def test_a_window_of_a_second_becomes_the_rate(clock: Clock) -> None:
    rate = Rate(clock)
    clock.now += 1.0
    assert rate.add(300) == pytest.approx(300)


def test_a_new_window_weighs_four_tenths(clock: Clock) -> None:
    rate = Rate(clock)
    clock.now += 1.0
    rate.add(1_000)
    clock.now += 2.0
    assert rate.add(4_000) == pytest.approx(0.4 * 2_000 + 0.6 * 1_000)


def test_within_a_window_the_rate_stays(clock: Clock) -> None:
    rate = Rate(clock)
    clock.now += 1.0
    rate.add(1_000)
    clock.now += 0.5
    assert rate.add(10_000) == pytest.approx(1_000)
