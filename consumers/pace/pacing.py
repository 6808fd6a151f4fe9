"""The pace of a consumer: the size of its next transaction and the pause after it. Pure except for the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from consumers.pace.batch_size_optimizer import Optimizer
from infra.settings.model import MigrationSettings

SHARES: Final = 4
"""A transaction grows up to 1/4 of the batch, so that the next can be planned while one runs (see Ahead)."""
_READ: Final = 16
"""Events read at a time, per change in a transaction."""

_SMALLEST: Final = 10
"""The minimum of changes in a transaction: with fewer, its fixed cost dominates."""
_BEGINNING: Final = 0.25
"""Until the optimizer has its 20 transactions, the size doubles after one that took at most this share of its target.

So the next one takes at most about half of it. The optimizer alone would keep the size for 20 transactions, and then
add a fifth at a time: that takes two seconds until the size is right in a database 5 ms away.
"""
_SLACK: Final = 0.1
"""Seconds of delay that may be caught up: a sleep always takes slightly too long, and many are short."""


class Pacing:
    """The pace of one consumer, from its migration's settings."""

    def __init__(self, settings: MigrationSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._pause = settings.pause_ms / 1000
        self._rate = settings.max_rate
        self._clock = clock
        self._busy_until = clock()
        self._optimizer: Optimizer | None = None
        self._fixed = settings.sub_batch_size
        self._largest = max(settings.batch_size // SHARES, settings.sub_batch_size)
        if settings.adaptive:
            self._optimizer = Optimizer(
                settings.sub_batch_size,
                settings.transaction_ms / 1000,
                minimum=min(_SMALLEST, settings.sub_batch_size),
                maximum=self._largest,
            )
        self._batch = settings.batch_size
        self._beginning = True

    @property
    def records(self) -> int:
        """The number of records to read at a time. It grows with transactions, so that a read has several of them."""
        return max(self._batch, self.limit * _READ)

    @property
    def limit(self) -> int:
        """The maximum of changes in the next transaction: never more than one second's worth of the rate."""
        size = self._optimizer.size if self._optimizer else self._fixed
        return min(size, max(1, int(self._rate))) if self._rate else size

    def follow(self, max_rate: float | None, transaction_ms: int | None) -> None:
        """Continue at the pace that an operator wants; None: as in the settings. Idempotent.

        The batch size keeps what it has learned; a pause that the former rate required does not count.
        """
        rate = self._settings.max_rate if max_rate is None else max_rate
        if rate != self._rate:
            self._rate, self._busy_until = rate, self._clock()
        interval = (self._settings.transaction_ms if transaction_ms is None else transaction_ms) / 1000
        if self._optimizer and self._optimizer.interval != interval:
            self._optimizer.aim(interval)

    @property
    def pace(self) -> tuple[float, float | None]:
        """The maximum of changes per second, and the target duration of a transaction in seconds, if adaptive."""
        return self._rate, self._optimizer.interval if self._optimizer else None

    def done(self, changes: int, seconds: float) -> float:
        """Record that a transaction of `changes` took `seconds`; return how long to pause before the next.

        Only a full transaction shows how long one of its size takes.
        """
        if not changes:
            return 0.0
        if self._optimizer and changes >= self._optimizer.size:
            self._learn(self._optimizer, seconds)
        if not self._rate:
            return self._pause
        now = self._clock()
        # At most that much idle time is credited, so that no burst follows a pause.
        self._busy_until = max(self._busy_until, now - seconds - _SLACK) + changes / self._rate
        return max(self._pause, self._busy_until - now)

    def timed_out(self) -> None:
        """Record that a transaction timed out: the next one is smaller."""
        self._beginning = False
        if self._optimizer:
            self._optimizer.timed_out()

    def _learn(self, optimizer: Optimizer, seconds: float) -> None:
        """Choose the next size after a full transaction: double it at first, else as the optimizer says."""
        self._beginning &= optimizer.smoothed is None
        if self._beginning and optimizer.size < self._largest and seconds <= _BEGINNING * optimizer.interval:
            optimizer.size = min(2 * optimizer.size, self._largest)
        else:
            optimizer.done(seconds)
