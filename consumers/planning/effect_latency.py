"""Measures the time from a commit in the source to that of its effect."""

from __future__ import annotations

import time

from consumers.planning.planner import SubBatch
from infra.service import metrics
from schemas.codec.header import HeaderReader
from schemas.errors import Malformed


class EffectLatency:
    """The latencies of one consumer; a transaction costs the reading of one event's header."""

    def __init__(self, migration: str) -> None:
        self._migration = migration
        self._header = HeaderReader()

    def observe(self, sub_batch: SubBatch) -> None:
        """Count the changes of a transaction that has just committed, with the latency of its first event.

        Leaves out rows of snapshots, whose time is that of their chunk.
        """
        value = sub_batch.origins[0].value() if sub_batch.origins else None
        if value is None:
            return
        try:
            first = self._header.prefix(value)
        except Malformed:  # a dead letter's, which has no latency
            return
        if not first.snapshot:
            # By the clocks of two servers, so that it may seem negative.
            latency = max(0.0, time.time() - first.ts_ms / 1000)
            metrics.EFFECT_LATENCY.observe(self._migration, latency, len(sub_batch.changes))
