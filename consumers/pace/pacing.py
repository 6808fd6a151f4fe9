"""How fast a member may go: the size of its next transaction, and the rest after each. Pure but for the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from consumers.pace.batch_size_optimizer import Optimizer
from infra.settings.model import MigrationSettings

_SHARES: Final = 4
"""A transaction grows up to this part of the batch: the next is planned while one is under way (see Ahead)."""
_READ: Final = 16
"""Events read at a time, for each change that a transaction may hold."""

_SMALLEST: Final = 10
"""Changes in a transaction below which it takes hardly less time: what each costs by itself is most of it then."""
_SLACK: Final = 0.1
"""Seconds that may be made up for: a rest always takes a little longer than it should, and many are short."""


class Pacing:
    """The pace of one member, by its migration's settings."""

    def __init__(self, settings: MigrationSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause = settings.pause_ms / 1000
        self._rate = settings.max_rate
        self._clock = clock
        self._busy_until = clock()
        self._optimizer: Optimizer | None = None
        self._fixed = settings.sub_batch_size
        if settings.adaptive:
            self._optimizer = Optimizer(
                settings.sub_batch_size,
                settings.transaction_ms / 1000,
                minimum=min(_SMALLEST, settings.sub_batch_size),
                maximum=max(settings.batch_size // _SHARES, settings.sub_batch_size),
            )
        self._batch = settings.batch_size

    @property
    def records(self) -> int:
        """How many records to read at a time: more as transactions grow, so that there are several in what is read."""
        return max(self._batch, self.limit * _READ)

    @property
    def limit(self) -> int:
        """How many changes the next transaction may hold: never more than a second's worth of the rate."""
        size = self._optimizer.size if self._optimizer else self._fixed
        return min(size, max(1, int(self._rate))) if self._rate else size

    def done(self, changes: int, seconds: float) -> float:
        """Note a transaction of `changes` that took `seconds`; return how long to rest before the next.

        Only one that was full tells how long one of its size takes.
        """
        if not changes:
            return 0.0
        if self._optimizer and changes >= self._optimizer.size:
            self._optimizer.done(seconds)
        if not self._rate:
            return self._pause
        now = self._clock()
        # No more of a lull than that is saved up: after it the rate is what it is, and no burst.
        self._busy_until = max(self._busy_until, now - seconds - _SLACK) + changes / self._rate
        return max(self._pause, self._busy_until - now)

    def timed_out(self) -> None:
        """Note that a transaction ran into a timeout: the next is smaller."""
        if self._optimizer:
            self._optimizer.timed_out()
