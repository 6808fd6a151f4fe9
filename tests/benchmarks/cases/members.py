"""Two consumers on four partitions compared with one, over a topic in which no row needs a change."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.bench import Bench, median
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.replays import replay_runs


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure both; the peer is the single consumer."""
    two = median(run.rate for run in replay_runs(bench, bench.rows, members=2))
    one = median(run.rate for run in replay_runs(bench, bench.rows))
    yield Figure("consumers, two compared with one", two, "events/s", peer=one, target=Target(at_least=1.6, ratio=True))
