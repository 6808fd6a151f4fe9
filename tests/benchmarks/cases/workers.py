"""A snapshot with four workers compared with one: over a link that limits each connection, and without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.benchmarks.bench import TABLE, Bench, Site, median
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.link import linked
from tests.benchmarks.producing import Run, copied

_BYTES_PER_SECOND: Final = 20e6
_SECONDS: Final = 0.005
_WIDTH: Final = 3_200
"""Bytes that are added to a row, so that four connections' bandwidth is less than what two processors can copy."""


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure one and four workers in turn, first over the link."""
    one, four = zip(*_over_a_link(bench), strict=True)
    yield Figure(
        "snapshot over 20 MB/s a connection and 5 ms, 4 workers compared with one",
        median(run.rate for run in four),
        "rows/s",
        peer=median(run.rate for run in one),
        target=Target(at_least=3.5, ratio=True),
    )
    yield Figure("producer memory with 4 workers", median(run.peak for run in four), "MB", smaller=True)
    one, four = zip(*_without(bench), strict=True)
    cost, peer = (median(sum(run.cpu.values()) / run.events * 1e6 for run in each) for each in (four, one))
    yield Figure(
        "snapshot with 4 workers, processor time compared with one",
        cost,
        "s/million",
        peer=peer,
        smaller=True,
        target=Target(at_least=0.95, ratio=True),
    )


def _over_a_link(bench: Bench) -> list[tuple[Run, Run]]:
    dsn = _wide(bench, max(10_000, bench.rows * 2 // 5))

    def pair(number: int) -> tuple[Run, Run]:
        with linked(dsn, bytes_per_second=_BYTES_PER_SECOND, seconds=_SECONDS) as over:
            return _copy(bench, over, f"linked1n{number}", 1), _copy(bench, over, f"linked4n{number}", 4)

    return bench.repeated("snapshot over a link with 1 and 4 workers", pair, _both)


def _without(bench: Bench) -> list[tuple[Run, Run]]:
    dsn = bench.database("workers", bench.rows)

    def pair(number: int) -> tuple[Run, Run]:
        return _copy(bench, dsn, f"plain1n{number}", 1), _copy(bench, dsn, f"plain4n{number}", 4)

    return bench.repeated("snapshot with 1 and 4 workers", pair, _both)


def _both(runs: tuple[Run, Run]) -> str:
    return "; ".join(map(str, runs))


def _wide(bench: Bench, rows: int) -> str:
    dsn = bench.database("workers_wide", rows)
    with bench.sql(dsn) as connection:
        # The check allows 255 characters at most.
        connection.execute(f"ALTER TABLE {TABLE} DROP CONSTRAINT IF EXISTS check_migration_plan")
        connection.execute(f"UPDATE {TABLE} SET migration_plan = repeat(md5(id::text), %s)", (_WIDTH // 32,))
        connection.execute(f"VACUUM (FREEZE, ANALYZE) {TABLE}")
        connection.execute("CHECKPOINT")
    return dsn


def _copy(bench: Bench, dsn: str, prefix: str, workers: int) -> Run:
    site = Site(bench, dsn, prefix, snapshot={"workers": workers})
    run = copied(site)
    site.drop()
    return run
