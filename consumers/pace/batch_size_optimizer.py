"""Adapts the size of a batch: GitLab's optimizer of batched background migrations, without I/O.

The size follows how long the last batches took, compared with the target interval. Constants and rules are GitLab's
(Gitlab::Database::BackgroundMigration::BatchOptimizer and BatchedMigration#smoothed_time_efficiency).
"""

from __future__ import annotations

from collections import deque
from typing import Final

SMOOTHED_OVER: Final = 20
"""The number of last batches that count. With fewer the size is unchanged."""
DECAY: Final = 0.4
"""The i-th newest batch has weight (1 - DECAY) ** i."""
TARGET_LOW: Final = 0.9
TARGET_HIGH: Final = 0.95
"""The range of efficiency, inclusive, in which the size is unchanged."""
MAX_MULTIPLIER: Final = 1.2
MIN_SIZE: Final = 1_000
MAX_SIZE: Final = 2_000_000
TIMEOUT_FACTOR: Final = 0.75
"""The factor applied to the size after a timeout."""
TIMEOUT_FLOOR: Final = 0.35
"""The minimum factor over successive timeouts: GitLab shrinks by at most 65 % in total."""


class Optimizer:
    """The size of the next batch. `interval` is its target duration in seconds."""

    def __init__(self, size: int, interval: float, *, minimum: int = MIN_SIZE, maximum: int = MAX_SIZE) -> None:
        self.size = size
        self.interval = interval
        self._minimum = minimum
        self._maximum = maximum
        self._efficiencies: deque[float] = deque(maxlen=SMOOTHED_OVER)
        self._before_timeouts: int | None = None

    @property
    def smoothed(self) -> float | None:
        """The weighted mean efficiency (duration / interval) of the last batches; None if there are too few."""
        if len(self._efficiencies) < SMOOTHED_OVER:
            return None
        weights = [(1 - DECAY) ** index for index in range(SMOOTHED_OVER)]
        newest_first = reversed(self._efficiencies)
        mean = sum(weight * each for weight, each in zip(weights, newest_first, strict=True)) / sum(weights)
        # The target range is inclusive: a rounding error must not push an exact 0.9 out of it.
        return round(mean, 9)

    def aim(self, interval: float) -> None:
        """Set the target duration in seconds; the last batches count as they would have with it."""
        scale = self.interval / interval
        self._efficiencies = deque((each * scale for each in self._efficiencies), maxlen=SMOOTHED_OVER)
        self.interval = interval

    def done(self, seconds: float) -> int:
        """Record that a batch took `seconds`, and return the size of the next."""
        self._before_timeouts = None
        self._efficiencies.append(seconds / self.interval)
        smoothed = self.smoothed
        if smoothed is not None and not TARGET_LOW <= smoothed <= TARGET_HIGH:
            factor = min(TARGET_HIGH / smoothed, MAX_MULTIPLIER) if smoothed > 0 else MAX_MULTIPLIER
            self.size = max(self._minimum, min(int(self.size * factor), self._maximum))
        return self.size

    def timed_out(self) -> int:
        """Record that a batch timed out, and return the size for the retry."""
        if self._before_timeouts is None:
            self._before_timeouts = self.size
        floor = self._before_timeouts * TIMEOUT_FLOOR
        self.size = max(1, int(max(self.size * TIMEOUT_FACTOR, floor)))
        return self.size
