"""Limits a rate in bytes: what was read is subtracted afterwards, and reading waits until the difference is made up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_MOST_SECONDS: Final = 1.0
"""What may be saved up while nothing is read."""


class TokenBucket:
    """A rate of `per_second` bytes; 0: no limit. `now` is a monotonic clock in seconds."""

    def __init__(self, per_second: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_second
        self._now = now
        self._at = now()
        self._level = 0.0

    def took(self, size: int) -> None:
        """Subtract bytes that were read."""
        if self._rate:
            self._level = self._filled() - size

    @property
    def seconds(self) -> float:
        """The time until more may be read; 0: now."""
        return max(0.0, -self._filled() / self._rate) if self._rate else 0.0

    def _filled(self) -> float:
        now = self._now()
        self._level = min(self._rate * _MOST_SECONDS, self._level + (now - self._at) * self._rate)
        self._at = now
        return self._level
