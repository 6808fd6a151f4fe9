"""Replaying a whole topic in which no row needs a change: events per second of one process."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.bench import Bench, median
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.replays import replay_runs


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure one consumer on the snapshot's topic."""
    runs = replay_runs(bench, bench.rows)
    rate = median(run.rate for run in runs)
    yield Figure("replay", rate, "events/s", target=Target(at_least=250_000))
    yield Figure("replay, from process start", median(run.events / run.seconds for run in runs), "events/s")
