"""Holding a migration while its database suffers, and telling so: in the log, the metrics and `headrace status`."""

from __future__ import annotations

import time
from typing import Final

from consumers.contract.migration import Migration
from consumers.health.indicator import Health, Stop, Unknown, limits
from consumers.ledger.target import Connection
from infra.service import log, metrics
from infra.settings.model import MigrationSettings

HELD_CHECK_SECONDS: Final = 2.0
"""How often a held member looks again, where `health_seconds` is not less."""

_HOLD: Final = """
    INSERT INTO headrace.holds AS h (migration, member, reason) VALUES (%s, %s, %s)
    ON CONFLICT (migration, member) DO UPDATE SET reason = excluded.reason, seen_at = now()
"""


class Holding:
    """One member's view of its database's health."""

    def __init__(self, settings: MigrationSettings, migration: Migration, member: str) -> None:
        self._migration = migration.name
        self._member = member
        self._health = Health(limits(settings.health, migration.name), migration.writes or migration.tables)
        self._seconds = settings.health_seconds
        self._next = 0.0
        self._held = False
        self._looked: set[str] = set()
        self._unknown: set[str] = set()
        self._log = log.get(migration=migration.name)
        self.interval = min(settings.health_seconds, HELD_CHECK_SECONDS)
        """How long to wait before the next look while it is held."""

    def due(self) -> bool:
        """Whether it is time to look."""
        return time.monotonic() >= self._next

    def look(self, connection: Connection) -> bool:
        """Ask every indicator; return whether the migration has to be held. A duplicate asks again.

        Called with a connection that may be lost; then psycopg.Error is raised and nothing is known.
        """
        signals = self._health.signals(connection)
        for name, signal in signals.items():
            metrics.SUFFERING.labels(self._migration, name).set(isinstance(signal, Stop))
            if isinstance(signal, Unknown):
                # Loud once: an indicator that never says anything would go unnoticed.
                tell = self._log.debug if name in self._unknown or name not in self._looked else self._log.warning
                tell("health is not known", indicator=name, reason=signal.reason)
                self._unknown |= {name} & self._looked
            self._looked.add(name)
        reason = "; ".join(f"{name}: {signal.reason}" for name, signal in signals.items() if isinstance(signal, Stop))
        if reason:
            connection.execute(_HOLD, (self._migration, self._member, reason))
            if not self._held:
                self._log.warning("held until the database is well", reason=reason)
        elif self._held:
            self.leave(connection)
            self._log.info("goes on, the database is well")
        self._held = bool(reason)
        metrics.HELD.labels(self._migration).set(self._held)
        self._next = time.monotonic() + self._seconds
        return self._held

    def leave(self, connection: Connection) -> None:
        """Take back what was told, at the end too."""
        connection.execute(
            "DELETE FROM headrace.holds WHERE migration = %s AND member = %s", (self._migration, self._member)
        )
