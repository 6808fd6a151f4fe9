"""How large a piece of work should be: GitLab's optimizer of batched background migrations, pure.

The size follows how long the last pieces took, against how long one should take. Constants and rules are GitLab's
(Gitlab::Database::BackgroundMigration::BatchOptimizer and BatchedMigration#smoothed_time_efficiency).
"""

from __future__ import annotations

from collections import deque
from typing import Final

SMOOTHED_OVER: Final = 20
"""How many of the last pieces count; with fewer the size stays."""
DECAY: Final = 0.4
"""The i-th newest piece weighs (1 - DECAY) ** i."""
TARGET_LOW: Final = 0.9
TARGET_HIGH: Final = 0.95
"""The efficiencies, both inclusive, at which the size stays."""
MAX_MULTIPLIER: Final = 1.2
MIN_SIZE: Final = 1_000
MAX_SIZE: Final = 2_000_000
TIMEOUT_FACTOR: Final = 0.75
"""What a size shrinks by after a timeout."""
TIMEOUT_FLOOR: Final = 0.35
"""What is left at least of the size that timeouts began with: GitLab shrinks by at most 65 % in all."""


class Optimizer:
    """The size of the next piece. `interval` is how long a piece should take, in seconds."""

    def __init__(self, size: int, interval: float, *, minimum: int = MIN_SIZE, maximum: int = MAX_SIZE) -> None:
        self.size = size
        self._interval = interval
        self._minimum = minimum
        self._maximum = maximum
        self._efficiencies: deque[float] = deque(maxlen=SMOOTHED_OVER)
        self._before_timeouts: int | None = None

    @property
    def smoothed(self) -> float | None:
        """The efficiency (duration / interval) of the last pieces, the newest weighing most; None: too few."""
        if len(self._efficiencies) < SMOOTHED_OVER:
            return None
        weights = [(1 - DECAY) ** index for index in range(SMOOTHED_OVER)]
        newest_first = reversed(self._efficiencies)
        mean = sum(weight * each for weight, each in zip(weights, newest_first, strict=True)) / sum(weights)
        # The bounds of the target are inclusive: an exact 0.9 must not fall out of it by a rounding error.
        return round(mean, 9)

    def done(self, seconds: float) -> int:
        """Note that a piece took `seconds`, and return the size of the next."""
        self._before_timeouts = None
        self._efficiencies.append(seconds / self._interval)
        smoothed = self.smoothed
        if smoothed is not None and not TARGET_LOW <= smoothed <= TARGET_HIGH:
            factor = min(TARGET_HIGH / smoothed, MAX_MULTIPLIER) if smoothed > 0 else MAX_MULTIPLIER
            self.size = max(self._minimum, min(int(self.size * factor), self._maximum))
        return self.size

    def timed_out(self) -> int:
        """Note that a piece ran into a timeout, and return the size to try it again with."""
        if self._before_timeouts is None:
            self._before_timeouts = self.size
        floor = self._before_timeouts * TIMEOUT_FLOOR
        self.size = max(1, int(max(self.size * TIMEOUT_FACTOR, floor)))
        return self.size
