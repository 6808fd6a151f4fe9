"""A Prometheus histogram that counts many events with one observation."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

LATENCIES: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
"""Upper limits of buckets, in seconds."""


class EventHistogram(Collector):
    """Values of events by one label; an observation costs a bisection, however many events it is for."""

    def __init__(
        self,
        name: str,
        documentation: str,
        label: str,
        buckets: Sequence[float] = LATENCIES,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """`buckets` are ascending upper limits, without infinity."""
        self._name = name
        self._documentation = documentation
        self.label = label
        self._buckets = tuple(buckets)
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, label: str, value: float, events: int = 1) -> None:
        """Count `events` that have this value."""
        with self._lock:
            counts = self._counts.setdefault(label, [0] * (len(self._buckets) + 1))
            counts[bisect_left(self._buckets, value)] += events
            self._sums[label] = self._sums.get(label, 0.0) + value * events

    def describe(self) -> Iterator[Metric]:
        """Yield the metric without values. See prometheus_client.registry.Collector."""
        yield HistogramMetricFamily(self._name, self._documentation, labels=[self.label])

    def collect(self) -> Iterator[Metric]:
        """Yield the metric. See prometheus_client.registry.Collector."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self.label])
        limits = [*map(float, self._buckets), float("inf")]
        with self._lock:
            for label, counts in self._counts.items():
                # OpenMetrics and Prometheus write a limit as a float: "+Inf" for the last.
                names = ["+Inf" if limit == float("inf") else str(limit) for limit in limits]
                family.add_metric([label], list(zip(names, accumulate(counts), strict=True)), self._sums[label])
        yield family
