"""Exports what a migration's database records about it, and the lag of a consumer, as metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import psycopg

from consumers.contract import counting
from consumers.contract.migration import Migration
from consumers.ledger.progress import Place
from consumers.operations.overview.status_models import STATES
from consumers.operations.status import recorded, state_of
from infra.service import log, metrics

_COUNT_SECONDS: Final = 60.0
_COUNT_MS: Final = 50
"""Counting may use a thousandth of the time; after that the planner's estimate is exported."""


class MigrationOverview:
    """The metrics of one consumer's migration, over the consumer's own connection."""

    def __init__(self, migration: Migration, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._migration = migration
        self._name = migration.name
        self._clock = clock
        self._next_count = float("-inf")
        self._shown: set[Place] = set()
        self._before: tuple[float, int] | None = None
        self._log = log.get(migration=migration.name)

    def export(self, connection: psycopg.Connection[Any], lag: Mapping[Place, int]) -> None:
        """Set the metrics; `lag` is that of the consumer's partitions. A few short queries, and once a minute a count.

        Raises psycopg.Error if the connection is lost.
        """
        left = sum(lag.values())
        self._export_lag(lag)
        found = recorded(connection, self._name)
        state = state_of(found, alive=True, topics=bool(lag), left=left)
        for each in STATES:
            metrics.STATE.labels(self._name, each).set(each == state)
        metrics.ETA.labels(self._name).set(self._eta(left, sum(found.offsets.get(place, 0) for place in lag)))
        metrics.CONSUMERS.labels(self._name).set(len(found.members))
        metrics.WAITING_DEAD_LETTERS.labels(self._name).set(found.dead_letters)
        if self._clock() >= self._next_count:
            self._next_count = self._clock() + _COUNT_SECONDS
            self._export_remaining(connection)

    def _export_lag(self, lag: Mapping[Place, int]) -> None:
        for place in self._shown - lag.keys():
            metrics.LAG.remove(self._name, place.topic, str(place.partition))
        for place, offsets in lag.items():
            metrics.LAG.labels(self._name, place.topic, str(place.partition)).set(offsets)
        self._shown = set(lag)

    def _eta(self, left: int, passed: int) -> float:
        """Return the seconds until the lag is read, at the rate since the last call."""
        now = self._clock()
        before, self._before = self._before, (now, passed)
        if left == 0:
            return 0.0
        if before is None or passed <= before[1] or now <= before[0]:
            return float("inf")
        return left * (now - before[0]) / (passed - before[1])

    def _export_remaining(self, connection: psycopg.Connection[Any]) -> None:
        try:
            found = counting.count(connection, self._migration, limit_ms=_COUNT_MS)
        except Exception as error:
            # The completion check reports a count that fails; here a consumer must not end for it.
            if connection.closed:
                raise
            self._log.debug("remaining rows not exported", reason=counting.failed(error))
            return
        if found.rows is not None:
            metrics.REMAINING.labels(self._name).set(found.rows)
            metrics.ESTIMATED.labels(self._name).set(found.estimated)
