"""Says what a producer's stream waits for while a standby of synchronized_standby_slots has not confirmed."""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg

from infra.postgres import standbys
from infra.service import log, metrics

_SAY_EVERY_SECONDS: Final = 60.0


class StandbyWatch:
    """Asks when the stream stands still; says what it waits for once, then each minute, and when that is over."""

    def __init__(self, source: str, slot: str, lines: log.Log) -> None:
        self._slot = slot
        self._log = lines
        self._gauge = metrics.STANDBY_AWAITED.labels(source)
        self._awaited: list[str] = []
        self._said = 0.0

    def look(self, connection: psycopg.Connection[Any], *, stands: bool) -> None:
        """Note whether the stream `stands`: nothing that was written before the last look has come by now."""
        awaited = standbys.awaited(connection, self._slot) if stands else []
        self._gauge.set(bool(awaited))
        if awaited and (awaited != self._awaited or time.monotonic() >= self._said + _SAY_EVERY_SECONDS):
            self._said = time.monotonic()
            reason = f"{', '.join(awaited)}; {standbys.REMEDY}"
            self._log.warning("the stream waits for a standby", slot=self._slot, **{log.REASON: reason})
        if self._awaited and not awaited:
            self._log.info("the stream waits for no standby any more", slot=self._slot)
        self._awaited = awaited
