"""Fails a run if most of its changes cannot be applied, as GitLab fails a batched background migration.

Counted in the ledger, over all consumers: the changes that were tried since the run started, or since it was last
resumed, whether they were applied, found already up to date, or became dead letters. Events that were skipped were
not tried. Once more than half of at least 50 are dead letters, `headrace.migrations.failed` is set: the fence then
refuses every transaction of the migration, and its consumers wait until an operator resumes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from consumers.delivery.group import Group
from consumers.ledger import fence
from consumers.ledger.progress import GUARDED
from consumers.ledger.target import Connection, Target
from infra.service import log, metrics

_CHECK_SECONDS: Final = 1.0
"""How often a consumer of a failed migration checks whether it was resumed."""

_LOOK: Final = """
    WITH sums AS (
        SELECT coalesce(sum(dead_letters), 0)::bigint AS dead_letters,
               coalesce(sum(applied + dead_letters + coalesce((skip_reasons ->> %(guarded)s)::bigint, 0)), 0)::bigint
                   AS tried
          FROM headrace.progress WHERE migration = %(migration)s AND run = %(run)s
    ), before AS (
        SELECT dead_letters, tried FROM headrace.failures
         WHERE migration = %(migration)s AND run = %(run)s ORDER BY failed_at DESC LIMIT 1
    ), since AS (
        SELECT sums.dead_letters - coalesce(before.dead_letters, 0) AS dead_letters,
               sums.tried - coalesce(before.tried, 0) AS tried
          FROM sums LEFT JOIN before ON true
    ), failed AS (
        UPDATE headrace.migrations m
           SET failed = format('%%s of %%s changes of run %%s could not be applied and became dead letters',
                               since.dead_letters, since.tried, m.run)
          FROM since
         WHERE m.name = %(migration)s AND m.run = %(run)s AND m.failed IS NULL
           AND since.tried >= %(least)s AND since.dead_letters * 2 > since.tried
        RETURNING m.failed
    )
    INSERT INTO headrace.failures (migration, run, tried, dead_letters, reason)
    SELECT %(migration)s, %(run)s, sums.tried, sums.dead_letters, failed.failed FROM failed, sums
    RETURNING reason
"""

LEAST_TRIED: Final = 50
"""With fewer changes a migration never fails; GitLab's number (BatchedMigration, MINIMUM_JOBS)."""


class CircuitBreaker:
    """One consumer's view of whether its migration has failed.

    A consumer that `ends`, on catching up or completion, exits with `fence.Failed`. A service stays in its group and
    waits: if it exited, it would be restarted repeatedly and would not notice a resume.
    """

    def __init__(self, migration: str, target: Target, group: Group, *, ends: bool) -> None:
        self._migration = migration
        self._target = target
        self._group = group
        self._ends = ends
        self._log = log.get(migration=migration)

    def look(self, run: int) -> None:
        """Fail `run` if necessary; called after each transaction with dead letters. Idempotent."""
        known = {"migration": self._migration, "run": run, "guarded": GUARDED, "least": LEAST_TRIED}
        row = self._target.ask(lambda connection: connection.execute(_LOOK, known).fetchone())
        if row is not None:
            self._log.error("migration failed", reason=row[0], hint=str(fence.Failed.__doc__))

    def require_closed(self) -> None:
        """Raise fence.Failed if the migration has failed; called before writing a dead letter."""
        reason = self._target.ask(self._reason)
        if reason is not None:
            raise fence.Failed(f"{self._migration} has failed: {reason}")

    def hold(self, rest: Callable[[], None]) -> bool:
        """Stay in the group without reading while the migration has failed; return whether records are still valid.

        Calls `rest` first, to stop work in progress. Raises fence.Failed instead if the consumer `ends`.
        """
        if self._target.ask(self._reason) is None:
            return True
        rest()
        if self._ends:
            self.require_closed()
        metrics.FAILED.labels(self._migration).set(1)
        metrics.SUSPENDED.labels(self._migration).set(1)
        self._log.error("consumer suspended, migration has failed", reason=self._target.ask(self._reason))
        good = self._group.wait(_CHECK_SECONDS, still=lambda: self._target.ask(self._reason) is not None)
        metrics.SUSPENDED.labels(self._migration).set(0)
        metrics.FAILED.labels(self._migration).set(0)
        return good

    def _reason(self, connection: Connection) -> str | None:
        row = connection.execute(
            "SELECT failed FROM headrace.migrations WHERE name = %s", (self._migration,)
        ).fetchone()
        return row[0] if row else None
