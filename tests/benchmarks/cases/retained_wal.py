"""WAL retained by the source: with a stalled consumer, while idle, and under heavy load.

The bound is the setting `databases.<name>.snapshot.max_retained_wal_mb`, half of the default here. Each case runs until
three times as much is written: to the captured table at 20,000 rows a second, to another database as fast as one
connection can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import psycopg
from confluent_kafka import OFFSET_BEGINNING, TopicPartition

from infra.kafka import clients
from infra.settings.file import load_settings
from infra.stack.processes.keeper import Guarded
from tests.benchmarks.bench import SOURCE, TABLE, Bench, Site
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.producing import producing
from tests.benchmarks.retention import Load, Retained, Retention
from tests.benchmarks.watching import PositionsWatch

_BOUND: Final = 128
_TIMES: Final = 3
_TRANSACTION: Final = 1000
_TRANSACTIONS_A_SECOND: Final = 20
_OTHERS: Final = 20_000


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure each once: the maximum over some hundred samples counts."""
    dsn = bench.database("retained", bench.rows)
    scenarios: dict[str, Callable[[Bench, Site, int], Retained]] = {
        "a stalled consumer": _stalled,
        "an idle database": _idle,
        "a snapshot under writes": _snapshot,
    }
    for number, (name, scenario) in enumerate(scenarios.items()):
        site = _bounded(Site(bench, dsn, f"retained{number}"))
        try:
            found = scenario(bench, site, bench.rows)
        finally:
            site.drop()
        bench.say(f"retained WAL, {name}: {found}")
        yield Figure(
            f"retained WAL, {name}",
            found.most / 2**20,
            "MiB",
            peer=_BOUND,
            target=Target(at_most=_BOUND),
            smaller=True,
        )
        yield Figure(f"retained WAL, {name}: written", found.written / 2**20, "MiB")


def _bounded(site: Site) -> Site:
    with site.file.open("a", encoding="utf-8") as file:
        file.write(f"[databases.{SOURCE}.snapshot]\nmax_retained_wal_mb = {_BOUND}\n")
    site.settings = load_settings(site.file)
    return site


def _change(connection: psycopg.Connection[Any], number: int, *, rows: int) -> None:
    first = number * _TRANSACTION % rows + 1
    connection.execute(
        f"UPDATE {TABLE} SET updated_at = clock_timestamp() WHERE id BETWEEN %s AND %s",
        (first, first + _TRANSACTION - 1),
    )


def _stalled(bench: Bench, site: Site, rows: int) -> Retained:
    """Update the captured table, with a consumer of its topic that reads one record and then stops."""
    with ExitStack() as opened:
        watch = opened.enter_context(PositionsWatch(site))
        process = opened.enter_context(producing(site))
        watch.until_copied(process)
        consumer = clients.consumer(site.settings.kafka, f"{site.prefix}-stalled")
        opened.callback(consumer.close)
        consumer.assign([TopicPartition(site.topic, 0, OFFSET_BEGINNING)])
        consumer.poll(30)
        retention = opened.enter_context(Retention(site.dsn, site.slot))
        opened.enter_context(Load(site.dsn, partial(_change, rows=rows), _TRANSACTIONS_A_SECOND))
        _enough(bench, process, retention)
        return retention.found


def _idle(bench: Bench, site: Site, rows: int) -> Retained:
    """Write nothing to the captured database, and much to another one on the same server."""
    del rows
    other = bench.database("retained_other", _OTHERS)
    with ExitStack() as opened:
        watch = opened.enter_context(PositionsWatch(site))
        process = opened.enter_context(producing(site))
        watch.until_copied(process)
        retention = opened.enter_context(Retention(site.dsn, site.slot))
        opened.enter_context(Load(other, partial(_change, rows=_OTHERS)))
        _enough(bench, process, retention)
        return retention.found


def _snapshot(bench: Bench, site: Site, rows: int) -> Retained:
    """Snapshot the table while its rows are updated, and stream it for a while afterwards."""
    with ExitStack() as opened:
        watch = opened.enter_context(PositionsWatch(site))
        opened.enter_context(Load(site.dsn, partial(_change, rows=rows), _TRANSACTIONS_A_SECOND))
        retention = opened.enter_context(Retention(site.dsn, site.slot))
        process = opened.enter_context(producing(site))
        watch.until_copied(process)
        _enough(bench, process, retention)
        return retention.found


def _enough(bench: Bench, process: Guarded, retention: Retention) -> None:
    for _ in bench.watched("the producer", process, every=0.5):
        if retention.found.written >= _TIMES * _BOUND * 2**20:
            return
