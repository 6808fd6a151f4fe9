"""Snapshots of the whole table, measured once for all benchmarks."""

from __future__ import annotations

from tests.benchmarks.bench import Bench, Site
from tests.benchmarks.producing import Run, copied


def snapshot_runs(bench: Bench, rows: int) -> list[Run]:
    """Return all runs of a producer on `rows` rows."""
    return _measured(bench, rows)[0]


def snapshot_site(bench: Bench, rows: int) -> Site:
    """Return the site of the last of those runs, whose topic has `rows` rows; its slot is dropped."""
    return _measured(bench, rows)[1]


def _measured(bench: Bench, rows: int) -> tuple[list[Run], Site]:
    def measure() -> tuple[list[Run], Site]:
        dsn = bench.database(f"rows_{rows}", rows)
        kept: list[Site] = []

        def run(number: int) -> Run:
            if kept:
                kept.pop().drop()
            kept.append(Site(bench, dsn, f"copy{rows}n{number}"))
            outcome = copied(kept[-1])
            kept[-1].drop_slot()
            return outcome

        runs = bench.repeated(f"headrace's snapshot of {rows:,} rows", run, str)
        return runs, kept[-1]

    return bench.once(("snapshot", rows), measure)
