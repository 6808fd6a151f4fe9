"""Checks that ten times the rows take at most eleven times as long."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.bench import Bench, median
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.snapshots import snapshot_runs


def figures(bench: Bench) -> Iterator[Figure]:
    """Compare snapshots of all rows with those of a tenth, from the start of copying."""
    whole = median(run.seconds for run in snapshot_runs(bench, bench.rows))
    tenth = median(run.seconds for run in snapshot_runs(bench, max(1000, bench.rows // 10)))
    yield Figure("linear, time of 10x the rows", whole / tenth, "x", target=Target(at_most=11), smaller=True)
