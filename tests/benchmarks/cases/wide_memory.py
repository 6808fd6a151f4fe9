"""A producer's peak memory while it copies wide rows: some hundred MB of each width, up to the largest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.benchmarks.bench import TABLE, Bench, Site, median
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.producing import Run, copied
from tests.benchmarks.snapshots import snapshot_runs

_WIDTHS: Final = {
    "2 kB": (2_000, 150_000),
    "50 kB": (50_000, 6_000),
    "1 MB": (1_000_000, 300),
    "100 MB": (100_000_000, 3),
}
"""Name → bytes per row, and number of rows."""


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure each width, also compared with the narrow rows of the other benchmarks."""
    narrow = median(run.peak for run in snapshot_runs(bench, max(1000, bench.rows // 10)))
    for name, (size, rows) in _WIDTHS.items():
        peak = median(run.peak for run in _runs(bench, name, size, rows))
        yield Figure(f"producer memory, rows of {name}", peak, "MB", target=Target(at_most=300), smaller=True)
        yield Figure(f"producer memory, rows of {name} compared with narrow ones", peak / narrow, "x", smaller=True)


def _runs(bench: Bench, name: str, size: int, rows: int) -> list[Run]:
    dsn = bench.database(f"wide_{size}", rows)
    with bench.sql(dsn) as connection:
        connection.execute(
            f"ALTER TABLE {TABLE} DROP CONSTRAINT IF EXISTS check_migration_plan"
        )  # the check allows 255 characters at most
        connection.execute(f"UPDATE {TABLE} SET migration_plan = repeat(md5(id::text), %s)", (size // 32,))

    def run(number: int) -> Run:
        site = Site(bench, dsn, f"wide{size}n{number}")
        outcome = copied(site)
        site.drop()
        return outcome

    return bench.repeated(f"snapshot of {rows:,} rows of {name}", run, str)
