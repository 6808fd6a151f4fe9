"""Samples of a run's progress, for reports: one row a minute, written in a transaction that applies events anyway.

So a run that applies nothing has no samples, and costs nothing. Samples of the last week are kept by the minute, older
ones by the hour, and none for longer than 400 days: at most some 20,000 small rows a migration.
"""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg

from infra.postgres.advisory_locks import lock_key

Cursor = psycopg.Cursor[Any]

SECONDS: Final = 60.0
"""How often a consumer takes a sample; of several consumers one does."""
_PRUNE_SECONDS: Final = 3_600.0

_TAKE: Final = """
    INSERT INTO headrace.samples (migration, run, at, events, applied, skipped, dead_letters, rate)
    SELECT %(migration)s, %(run)s, clock_timestamp(), applied + skipped + dead_letters, applied, skipped, dead_letters,
           rate
      FROM (SELECT coalesce(sum(applied), 0) AS applied, coalesce(sum(skipped), 0) AS skipped,
                   coalesce(sum(dead_letters), 0) AS dead_letters,
                   coalesce(sum(rate) FILTER (WHERE last AND updated_at > now() - interval '15 seconds'), 0) AS rate
              FROM (SELECT *, row_number() OVER (PARTITION BY member ORDER BY updated_at DESC) = 1 AS last
                      FROM headrace.progress WHERE migration = %(migration)s AND run = %(run)s) AS places) AS sums
     WHERE pg_catalog.pg_try_advisory_xact_lock(%(key)s)
       AND NOT EXISTS (SELECT FROM headrace.samples
                        WHERE migration = %(migration)s AND run = %(run)s
                          AND at > clock_timestamp() - interval '50 seconds')
    ON CONFLICT DO NOTHING
"""
"""The lock, which no transaction waits for, keeps consumers from sampling at the same moment."""
_PRUNE: Final = """
    WITH of_runs AS (
        DELETE FROM headrace.samples s
         WHERE s.migration = %(migration)s
           AND (s.at < now() - interval '400 days'
                OR (s.at < now() - interval '7 days'
                    AND EXISTS (SELECT FROM headrace.samples e
                                 WHERE e.migration = s.migration AND e.run = s.run AND e.at < s.at
                                   AND e.at >= date_trunc('hour', s.at))))
    )
    DELETE FROM headrace.throttle_periods t
     WHERE t.migration = %(migration)s
       AND (t.until < now() - interval '400 days'
            OR t.until < (SELECT until FROM headrace.throttle_periods WHERE migration = %(migration)s
                           ORDER BY until DESC OFFSET 10000 LIMIT 1))
"""


class Samples:
    """One consumer's share of its migration's samples."""

    def __init__(self, migration: str) -> None:
        self._migration = migration
        self._key = lock_key("samples", migration)
        self._next = self._prune_next = float("-inf")

    def take(self, cursor: Cursor, run: int) -> None:
        """Take a sample if one is due, as the last statements of a transaction that advanced the ledger."""
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + SECONDS
        cursor.execute(_TAKE, {"migration": self._migration, "run": run, "key": self._key})
        if now >= self._prune_next:
            self._prune_next = now + _PRUNE_SECONDS
            cursor.execute(_PRUNE, {"migration": self._migration})
