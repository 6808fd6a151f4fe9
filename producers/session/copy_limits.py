"""Throttles the copy phase: by the bytes that it may read per second, and while its database is unhealthy.

The stream continues meanwhile. Rows whose last record left out a value are read all the same: only so many can be
recorded, and they are few.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import psycopg

from infra.health.indicator import Health, Limit, Stop, limits, stops
from infra.service import log, metrics
from infra.settings.model import SnapshotSettings
from producers.snapshot.reader import CHUNKS_EACH, chunk_bytes
from producers.snapshot.token_bucket import TokenBucket

THROTTLED_CHECK_SECONDS: Final = 2.0
"""How often a throttled snapshot checks again, unless `health_seconds` is less."""


def snapshot_limits(source: str, settings: SnapshotSettings) -> dict[str, Limit]:
    """Return indicator → limit of those in the settings. Raises SettingsError for an invalid name or limit."""
    return limits(settings.health, f"databases.{source}.snapshot.health", unnamed=False)


class CopyLimits:
    """The limits of one session's copy phase, on `tables` (`schema.table`). `asked` is as from `snapshot_limits`."""

    def __init__(
        self,
        source: str,
        settings: SnapshotSettings,
        asked: Mapping[str, Limit],
        tables: Sequence[str],
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        rate = settings.max_mb_per_second * 1e6
        self._source = source
        self._bucket = TokenBucket(rate, now)
        self._health = Health(asked, tables) if asked else None
        self._seconds = settings.health_seconds
        self._now = now
        self._next = now()
        self._log = log.get(**{log.SOURCE: source})
        most = chunk_bytes(settings.workers)
        self.chunk_bytes = max(1, int(min(most, rate / settings.workers / CHUNKS_EACH))) if rate else most
        """For how many bytes a chunk is planned: what a worker may read in a second, rather than much at once."""
        self.throttled_by: str | None = None
        """The indicators that throttle the copy now, with their reasons."""

    def wait(self, connection: psycopg.Connection[Any]) -> float:
        """Return for how many seconds no chunk may be read; 0: one may be read now.

        Queries the indicators when they are due. Raises psycopg.Error if the connection is lost.
        """
        if self._health is not None and self._now() >= self._next:
            self._look(connection, self._health)
        throttled = max(0.0, self._next - self._now()) if self.throttled_by else 0.0
        return max(throttled, self._bucket.seconds)

    def took(self, size: int) -> None:
        """Note a chunk of so many bytes that was read."""
        self._bucket.took(size)

    def leave(self) -> None:
        """Note that nothing is left to copy: nothing is throttled."""
        if self.throttled_by is None:
            return
        self.throttled_by = None
        self._next = self._now()
        for name in self._health.names if self._health else ():
            metrics.SNAPSHOT_THROTTLED.labels(self._source, name).set(0)

    def _look(self, connection: psycopg.Connection[Any], health: Health) -> None:
        signals = health.signals(connection)
        for name, signal in signals.items():
            metrics.SNAPSHOT_THROTTLED.labels(self._source, name).set(isinstance(signal, Stop))
        health.log_unknown(signals, self._log)
        reason = stops(signals)
        if reason and self.throttled_by is None:
            self._log.warning("snapshot throttled", **{log.REASON: reason})
        elif not reason and self.throttled_by is not None:
            self._log.info("snapshot no longer throttled")
        self.throttled_by = reason or None
        self._next = self._now() + (min(self._seconds, THROTTLED_CHECK_SECONDS) if reason else self._seconds)
