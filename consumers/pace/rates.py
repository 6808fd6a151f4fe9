"""Computes a consumer's smoothed event rate, for `headrace status` and its estimate of the remaining time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_WINDOW_SECONDS: Final = 1.0
_WEIGHT: Final = 0.4
"""The weight of the newest window; GitLab's optimizer gives the newest job the same weight."""


class Rate:
    """Events per second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._events = 0
        self.per_second = 0.0

    def add(self, events: int) -> float:
        """Add `events` just processed and return the rate."""
        self._events += events
        now = self._clock()
        elapsed = now - self._since
        if elapsed >= _WINDOW_SECONDS or self.per_second == 0.0:
            newest = self._events / max(elapsed, 0.001)
            smoothed = _WEIGHT * newest + (1 - _WEIGHT) * self.per_second
            if elapsed >= _WINDOW_SECONDS:
                self.per_second = smoothed if self.per_second else newest
                self._since, self._events = now, 0
            else:
                return newest
        return self.per_second
