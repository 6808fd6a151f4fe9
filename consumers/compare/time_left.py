"""Estimates how long a comparison will take, and logs how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from infra.service import log

_FIRST_SECONDS: Final = 2.0
"""After so long the rates are known well enough to say how long all will take."""
_EVERY_SECONDS: Final = 10.0


class Progress:
    """What is read of each side, such as rows of a table or records of a topic, at the same time.

    `totals` are estimates, 0 where nothing is known; `done` what an earlier process has read. `now` is a monotonic
    clock in seconds.
    """

    def __init__(
        self,
        totals: Mapping[str, int],
        done: Mapping[str, int],
        lines: log.Log,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._totals = totals
        self._first = dict(done)
        self._done = dict(done)
        self._log = lines
        self._now = now
        self._began = now()
        self._next = self._began + _FIRST_SECONDS
        self._estimated = False

    def reached(self, side: str, done: int) -> None:
        """Note how much of a side is read, and log it from time to time."""
        self._done[side] = done
        if self._now() < self._next:
            return
        self._next = self._now() + _EVERY_SECONDS
        event = "comparing" if self._estimated else "comparison estimated"
        self._estimated = True
        left = self.seconds_left
        known = {} if left is None else {"seconds_left": round(left)}
        self._log.info(event, **self._done, **known)

    @property
    def seconds_left(self) -> float | None:
        """The time that the slower side still takes, at the rate so far; None if a rate is not known."""
        elapsed = self._now() - self._began
        times = []
        for side, total in self._totals.items():
            left = total - self._done[side]
            read = self._done[side] - self._first[side]
            if left > 0:
                if not read or elapsed <= 0:
                    return None
                times.append(left * elapsed / read)
        return max(times, default=0.0)
