"""Resetting a third of the rows: the migration compared with the loop of seed 003, and with a single UPDATE.

The loop is the seed's: batches of 10,000 rows that need it, each in sub-batches of 100 by key range, every sub-batch a
transaction. All sides reset the same rows, which are restored in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import psycopg

from schemas.errors import HeadraceError
from tests.benchmarks.bench import TABLE, Bench, Site, median
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.ledger import Consumed, consumed
from tests.benchmarks.producing import copied

UNIT: Final = "rows/s"
_BATCH: Final = 10_000
_SUB_BATCH: Final = 100
_LAST: Final = 1 << 62
"""An id after every other."""

_SKIPPED: Final = "migration_state = 'import_skipped' AND migration_skipped_reason = 2"
_SKIP: Final = f"UPDATE {TABLE} SET migration_state = 'import_skipped', migration_skipped_reason = 2 WHERE id % 3 = 0"
_RESET: Final = f"UPDATE {TABLE} SET migration_state = 'default', migration_skipped_reason = NULL WHERE {_SKIPPED}"
_FIRST: Final = f"SELECT id FROM {TABLE} WHERE {_SKIPPED} AND id >= %s AND id < %s ORDER BY id LIMIT 1 OFFSET %s"


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure the migration, the loop and the single statement."""
    site = resets_site(bench)
    ours = bench.repeated("resets by headrace", lambda _: _migrated(bench, site), str)
    loops = bench.repeated("resets by the seed's loop", lambda _: _looped(bench, site), "{:,.0f} rows/s".format)
    single = bench.repeated("resets by one UPDATE", lambda _: _single(bench, site), "{:,.0f} rows/s".format)
    rate = median(run.applied / run.seconds for run in ours)
    # The migration reads every row's event to find the third; `rate` counts the rows that it resets.
    steady = median(run.rate * run.applied / run.events for run in ours)
    yield Figure("resets", steady, UNIT, peer=median(loops), target=Target(at_least=1.5, ratio=True))
    yield Figure("resets, from process start", rate, UNIT, peer=median(loops))
    yield Figure("resets, share of one UPDATE", steady, UNIT, peer=median(single))
    yield Figure("resets, memory", median(run.peak for run in ours), "MB", target=Target(at_most=200), smaller=True)


def resets_site(bench: Bench) -> Site:
    """Return a database with a third of its rows skipped, and their events in a topic; created once."""

    def make() -> Site:
        site = Site(bench, bench.database("resets", bench.rows), "resets")
        restore(bench, site)
        copied(site)
        site.drop_slot()
        return site

    return bench.once("site of resets", make)


def restore(bench: Bench, site: Site) -> None:
    """Restore the rows to their state before the resets."""
    with bench.sql(site.dsn) as connection:
        connection.execute(_SKIP)
        connection.execute(f"VACUUM (FREEZE, ANALYZE) {TABLE}")
        connection.execute("CHECKPOINT")


def _migrated(bench: Bench, site: Site) -> Consumed:
    outcome = consumed(site, bench.rows)
    if outcome.applied != bench.rows // 3:
        raise HeadraceError(f"{outcome.applied} rows were reset, where {bench.rows // 3} should have been")
    restore(bench, site)
    return outcome


def _looped(bench: Bench, site: Site) -> float:
    began = time.monotonic()
    reset = 0
    with bench.sql(site.dsn) as connection:
        start: int | None = _nth(connection, 0, _LAST, 0)
        while start is not None:
            stop = _nth(connection, start, _LAST, _BATCH)
            reset += _sub_batches(connection, start, stop if stop is not None else _LAST)
            start = stop
    seconds = time.monotonic() - began
    restore(bench, site)
    return _counted(bench, reset) / seconds


def _sub_batches(connection: psycopg.Connection[Any], start: int, end: int) -> int:
    reset = 0
    sub: int | None = start
    while sub is not None:
        stop = _nth(connection, sub, end, _SUB_BATCH)
        upto = stop if stop is not None else end
        reset += connection.execute(f"{_RESET} AND id >= %s AND id < %s", (sub, upto)).rowcount
        sub = stop
    return reset


def _nth(connection: psycopg.Connection[Any], start: int, end: int, offset: int) -> int | None:
    """Return the id of the row `offset` places after the first one to reset in [start, end)."""
    row = connection.execute(_FIRST, (start, end, offset)).fetchone()
    return None if row is None else int(row[0])


def _single(bench: Bench, site: Site) -> float:
    with bench.sql(site.dsn) as connection:
        began = time.monotonic()
        reset = connection.execute(_RESET).rowcount
        seconds = time.monotonic() - began
    restore(bench, site)
    return _counted(bench, reset) / seconds


def _counted(bench: Bench, reset: int) -> int:
    if reset != bench.rows // 3:
        raise HeadraceError(f"{reset} rows were reset, where {bench.rows // 3} should have been")
    return reset
