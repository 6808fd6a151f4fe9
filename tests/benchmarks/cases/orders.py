"""TPC-C's nine tables: their snapshot, and catching up with its new-order and payment transactions, with Debezium.

A warehouse has about 500,000 rows, and the items 100,000; as many warehouses as make `--rows` of them, and at least
one. Every row and every change has to arrive.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.errors import HeadraceError
from schemas.positions import Lsn
from tests.benchmarks.bench import PATIENCE, Bench, Site, median, median_or_none
from tests.benchmarks.debezium import Debezium, has_debezium
from tests.benchmarks.figures import Figure
from tests.benchmarks.producing import Run, caught_up, copied, cpu_figures, write_position
from tests.benchmarks.watching import beginnings, committed_records

_NAMES: Final = ("warehouse", "district", "customer", "history", "orders", "new_orders", "order_line", "item", "stock")
_TABLES: Final = tuple(f"public.{name}" for name in _NAMES)
_WAREHOUSE_ROWS: Final = 500_000
_ROWS_PER_TRANSACTION: Final = 25
"""Rows in the tables for each transaction to catch up with: 40,000 transactions for a million rows."""


@dataclass(frozen=True, slots=True)
class Both:
    """The same rows or changes read by each side."""

    ours: Run
    theirs: Run | None

    def __str__(self) -> str:
        return f"headrace {self.ours}; Debezium {self.theirs}"


class _OrdersSite(Site):
    """The site of the nine tables."""

    touch = "UPDATE warehouse SET w_ytd = w_ytd WHERE w_id = 1"


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure the snapshots, then the transactions."""
    dsn = bench.once("orders", lambda: _filled(bench))
    snapshots = bench.repeated("snapshot of the nine tables", lambda number: _snapshots(bench, dsn, number), str)
    yield from _figures("orders, snapshot", "rows/s", snapshots)
    yield from _figures("orders, catch_up", "changes/s", _rounds(bench, dsn))


def _figures(name: str, unit: str, found: list[Both]) -> Iterator[Figure]:
    ours = [each.ours for each in found]
    theirs = [each.theirs for each in found if each.theirs is not None]
    yield Figure(name, median(run.rate for run in ours), unit, peer=median_or_none(run.rate for run in theirs))
    yield Figure(
        f"{name}, from process start",
        median(run.rate_from_start for run in ours),
        unit,
        peer=median_or_none(run.rate_from_start for run in theirs),
    )
    yield from cpu_figures(name, ours, theirs)


def _warehouses(bench: Bench) -> int:
    return max(1, bench.rows // _WAREHOUSE_ROWS)


def _filled(bench: Bench) -> str:
    dsn = bench.stack.postgres.create_database("bench_orders")
    with bench.sql(dsn) as connection:
        connection.execute("SELECT set_config('bench.warehouses', %s, false)", (str(_warehouses(bench)),))
        for file in ("orders_tables.sql", "orders_rows.sql"):
            connection.execute(Path(__file__).parents[1].joinpath(file).read_bytes())
        connection.execute("VACUUM (FREEZE, ANALYZE)")
        connection.execute("CHECKPOINT")
    bench.say(f"{_warehouses(bench)} warehouses: {_rows(bench, dsn):,} rows")
    return dsn


def _rows(bench: Bench, dsn: str) -> int:
    """Return the rows of all nine tables."""
    with bench.sql(dsn) as connection:
        counts = " UNION ALL ".join(f"SELECT count(*) AS n FROM {table}" for table in _TABLES)
        row = connection.execute(f"SELECT sum(n) FROM ({counts}) counts".encode()).fetchone()
    assert row is not None
    return int(row[0])


def _snapshots(bench: Bench, dsn: str, number: int) -> Both:
    rows = _rows(bench, dsn)
    site = _OrdersSite(bench, dsn, f"orders{number}", tables=_TABLES)
    try:
        ours = copied(site)
        if (come := committed_records(site.settings.kafka, beginnings(site.settings.kafka, site.topics))) != rows:
            raise HeadraceError(f"{come} rows were published, where {rows} are in the tables")
    finally:
        site.drop()
    theirs = None
    if has_debezium(bench):
        peer = Debezium(bench, site, f"dbz_orders{number}", snapshot=True)
        try:
            theirs = peer.timed(rows)
        finally:
            peer.drop()
    return Both(ours, theirs)


def _rounds(bench: Bench, dsn: str) -> list[Both]:
    site = _OrdersSite(bench, dsn, "orders", tables=_TABLES)
    peer = Debezium(bench, site, "dbz_orders", snapshot=False) if has_debezium(bench) else None
    try:
        if peer is not None:
            peer.streams_from_here()
        copied(site)
        return bench.repeated("catching up with orders", lambda number: _round(site, peer, number), str)
    finally:
        site.drop()
        if peer is not None:
            peer.drop()


def _round(site: Site, peer: Debezium | None, number: int) -> Both:
    changes, last = _ordered(site, number)
    theirs = None
    # Later readers find more of the WAL in memory: each goes first now and then.
    if peer is not None and number % 2:
        theirs = peer.timed(changes)
    ours = caught_up(site, changes, last)
    if peer is not None and theirs is None:
        theirs = peer.timed(changes)
    return Both(ours, theirs)


def _ordered(site: Site, seed: int) -> tuple[int, Lsn]:
    """Do the transactions; return the number of changes, and a position after them all and before the last commit."""
    bench, root = site.bench, Path(__file__).parents[3]
    log = bench.place / f"orders-load{seed}.log"
    dsn = bench.kept_private("orders-dsn", site.dsn)
    numbers = (_warehouses(bench), bench.rows // _ROWS_PER_TRANSACTION, seed)
    words = [site.command()[0], "-m", "tests.benchmarks.orders_load", dsn, *map(str, numbers)]
    bench.stack.keeper.run(words, log=log, cwd=root, timeout=PATIENCE)
    report = json.loads(log.read_text(encoding="utf-8"))
    bench.say(f"{report['transactions'] / report['seconds']:,.0f} transactions/s, {report['changes']:,} changes")
    with bench.sql(site.dsn) as connection, connection.transaction():
        connection.execute(site.touch)
        return report["changes"] + 1, write_position(connection)
