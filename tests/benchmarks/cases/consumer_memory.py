"""A consumer's peak memory, and its growth with ten times the events."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.bench import Bench, median
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.replays import replay_runs


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure replays of all rows and of a tenth of them; the peer is the tenth."""
    whole = median(run.peak for run in replay_runs(bench, bench.rows))
    tenth = median(run.peak for run in replay_runs(bench, max(1000, bench.rows // 10)))
    yield Figure("consumer memory", whole, "MB", target=Target(at_most=200), smaller=True)
    yield Figure("consumer memory, 10x the events", whole / tenth, "x", target=Target(at_most=1.2), smaller=True)
