"""Reports the standbys of synchronized_standby_slots that a producer's stream waits for."""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg

from infra.postgres import standbys
from infra.service import log, metrics

_SAY_EVERY_SECONDS: Final = 60.0


class StandbyWatch:
    """Checks a stalled stream; logs the standbys that it waits for at once, then each minute, and at the end."""

    def __init__(self, source: str, slot: str, lines: log.Log) -> None:
        self._slot = slot
        self._log = lines
        self._gauge = metrics.STANDBY_AWAITED.labels(source)
        self._awaited: list[str] = []
        self._said = 0.0

    def look(self, connection: psycopg.Connection[Any], *, stalled: bool) -> None:
        """Note whether the stream is `stalled`: it has received nothing written before the last check."""
        awaited = standbys.awaited(connection, self._slot) if stalled else []
        self._gauge.set(bool(awaited))
        if awaited and (awaited != self._awaited or time.monotonic() >= self._said + _SAY_EVERY_SECONDS):
            self._said = time.monotonic()
            reason = f"{', '.join(awaited)}; {standbys.REMEDY}"
            self._log.warning("stream waits for a standby", slot=self._slot, **{log.REASON: reason})
        if self._awaited and not awaited:
            self._log.info("stream no longer waits for a standby", slot=self._slot)
        self._awaited = awaited
