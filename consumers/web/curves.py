"""Keeps the rate of each migration over the last minutes, for the curve on the page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

SECONDS: Final = 5.0
_VALUES: Final = 180
"""A quarter of an hour."""


class RateCurves:
    """The curves; values are events per second, one each five seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._slot: int | None = None
        self._curves: dict[str, deque[float | None]] = {}

    def add(self, rates: Mapping[str, float]) -> None:
        """Record the present rates, as often as they are known; times without any become gaps."""
        slot = int(self._clock() / SECONDS)
        passed = 0 if self._slot is None else min(slot - self._slot, _VALUES)
        if self._slot is not None and passed == 0:
            return
        for name in self._curves.keys() - rates.keys():
            del self._curves[name]
        for name, rate in rates.items():
            curve = self._curves.setdefault(name, deque(maxlen=_VALUES))
            curve.extend([None] * (passed - 1) if curve else [])
            curve.append(round(rate, 1))
        self._slot = slot

    def read(self) -> dict[str, list[float | None]]:
        """Return each curve, the newest value last."""
        return {name: list(curve) for name, curve in self._curves.items()}
