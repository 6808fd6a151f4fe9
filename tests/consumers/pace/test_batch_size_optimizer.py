from __future__ import annotations

import pytest

from consumers.pace.batch_size_optimizer import MAX_SIZE, MIN_SIZE, SMOOTHED_OVER, Optimizer


def after(efficiencies: list[float], size: int = 10_000, **bounds: int) -> Optimizer:
    """Return an optimizer whose last batches took these shares of the interval; only the last changes the size."""
    optimizer = Optimizer(size, 120.0, **bounds)
    for each in efficiencies[:-1]:
        optimizer.done(each * 120.0)
        optimizer.size = size
    optimizer.done(efficiencies[-1] * 120.0)
    return optimizer


def test_size_is_unchanged_before_20_batches() -> None:
    assert after([0.1] * 19).size == 10_000
    assert after([0.1] * 19).smoothed is None
    assert after([0.1] * 20).size != 10_000


def test_size_grows_by_at_most_a_fifth() -> None:
    assert after([0.01] * 20).size == 12_000
    assert after([0.0] * 20).size == 12_000


def test_size_targets_95_percent_and_is_truncated() -> None:
    assert after([0.85] * 20).size == int(10_000 * 0.95 / 0.85) == 11_176
    assert after([1.9] * 20).size == 5_000


@pytest.mark.parametrize("efficiency", [0.9, 0.92, 0.95])
def test_size_is_unchanged_between_90_and_95_percent(efficiency: float) -> None:
    optimizer = Optimizer(10_000, 1.0)
    for _ in range(40):
        optimizer.done(efficiency)
    assert optimizer.smoothed == pytest.approx(efficiency)
    assert optimizer.size == 10_000


def test_each_older_batch_has_six_tenths_of_the_weight() -> None:
    weights = [0.6**index for index in range(SMOOTHED_OVER)]
    assert after([0.0] * 19 + [1.0]).smoothed == pytest.approx(1 / sum(weights))
    assert after([0.0] * 18 + [1.0, 0.0]).smoothed == pytest.approx(0.6 / sum(weights))


def test_batches_older_than_the_20th_do_not_count() -> None:
    assert after([50.0, *[0.5] * 20]).smoothed == pytest.approx(0.5)


def test_size_stays_between_a_thousand_and_two_million() -> None:
    assert after([100.0] * 20).size == MIN_SIZE == 1_000
    assert after([0.01] * 20, size=1_900_000).size == MAX_SIZE == 2_000_000
    assert after([0.01] * 20, maximum=11_000).size == 11_000
    assert after([100.0] * 20, minimum=1).size == 95


def test_timeout_shrinks_by_a_quarter_and_65_percent_in_total() -> None:
    optimizer = Optimizer(1_000, 1.0)
    assert [optimizer.timed_out() for _ in range(5)] == [750, 562, 421, 350, 350]
    optimizer.done(0.5)
    assert optimizer.timed_out() == 262, "a success since resets the floor"


def test_minimum_size_is_one_row() -> None:
    optimizer = Optimizer(1, 1.0, minimum=1)
    assert optimizer.timed_out() == 1


def test_another_target_counts_the_last_batches_as_they_would_have_with_it() -> None:
    optimizer = after([0.92] * 20)
    assert optimizer.size == 10_000
    optimizer.aim(240.0)
    assert optimizer.smoothed == pytest.approx(0.46)
    assert optimizer.done(0.46 * 240.0) == 12_000
