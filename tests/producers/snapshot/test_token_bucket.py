"""The rate of a token bucket, by a clock that is set: so many bytes in so many seconds."""

from __future__ import annotations

import pytest

from producers.snapshot.token_bucket import TokenBucket


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("chunk", [1_000, 400_000, 32_000_000])
def test_bytes_read_follow_the_rate_whatever_the_size_of_a_chunk(chunk: int) -> None:
    clock = Clock()
    bucket = TokenBucket(1_000_000, clock)
    began, read = clock.now, 0
    while read < 100_000_000:
        assert bucket.seconds == pytest.approx(0, abs=1e-6)
        bucket.took(chunk)
        read += chunk
        assert bucket.seconds == pytest.approx(chunk / 1_000_000, abs=1e-5)
        clock.now += bucket.seconds
    assert read / (clock.now - began) == pytest.approx(1_000_000)


def test_a_second_of_the_rate_is_saved_up_and_no_more() -> None:
    clock = Clock()
    bucket = TokenBucket(1_000_000, clock)
    clock.now += 3_600
    bucket.took(1_500_000)
    assert bucket.seconds == pytest.approx(0.5)


def test_no_rate_is_no_limit() -> None:
    bucket = TokenBucket(0)
    bucket.took(1 << 40)
    assert bucket.seconds == 0
