"""Throttles a migration while its database is unhealthy, and reports it: log, metrics, `headrace status`."""

from __future__ import annotations

import time
from typing import Final

from consumers.contract.migration import Migration
from consumers.ledger.target import Connection
from infra.health.indicator import Health, Stop, limits, stops
from infra.postgres.parameters import storable
from infra.service import log, metrics
from infra.settings.model import MigrationSettings

THROTTLED_CHECK_SECONDS: Final = 2.0
"""How often a throttled consumer checks again, unless `health_seconds` is less."""

_RECORD: Final = """
    INSERT INTO headrace.throttles AS h (migration, member, reason) VALUES (%s, %s, %s)
    ON CONFLICT (migration, member) DO UPDATE SET reason = excluded.reason, seen_at = now()
"""
_OVER: Final = """
    WITH ended AS (
        DELETE FROM headrace.throttles WHERE migration = %s AND member = %s
        RETURNING migration, member, reason, since
    )
    INSERT INTO headrace.throttle_periods (migration, member, reason, since, until)
    SELECT migration, member, reason, since, now() FROM ended
"""


class Throttle:
    """One consumer's view of its database's health."""

    def __init__(self, settings: MigrationSettings, migration: Migration, member: str) -> None:
        self._migration = migration.name
        self._member = member
        self._health = Health(
            limits(settings.health, f"migrations.{migration.name}.health"), migration.writes or migration.tables
        )
        self._seconds = settings.health_seconds
        self._next = 0.0
        self._throttled = False
        self._log = log.get(migration=migration.name)
        self.interval = min(settings.health_seconds, THROTTLED_CHECK_SECONDS)
        """The seconds between checks while throttled."""

    def due(self) -> bool:
        """Whether a check is due."""
        return time.monotonic() >= self._next

    def look(self, connection: Connection) -> bool:
        """Query every indicator; return whether the migration has to be throttled. May be repeated.

        Raises psycopg.Error if the connection is lost.
        """
        signals = self._health.signals(connection)
        for name, signal in signals.items():
            metrics.THROTTLED.labels(self._migration, name).set(isinstance(signal, Stop))
        self._health.log_unknown(signals, self._log)
        if reason := stops(signals):
            connection.execute(_RECORD, (self._migration, self._member, storable(connection, reason)))
            if not self._throttled:
                self._log.warning("consumer throttled", reason=reason)
        elif self._throttled:
            self.leave(connection)
            self._log.info("consumer no longer throttled")
        self._throttled = bool(reason)
        metrics.SUSPENDED.labels(self._migration).set(self._throttled)
        self._next = time.monotonic() + self._seconds
        return self._throttled

    def leave(self, connection: Connection) -> None:
        """Delete this consumer's throttle, if any, and record its period; also called at the end."""
        connection.execute(_OVER, (self._migration, self._member))
