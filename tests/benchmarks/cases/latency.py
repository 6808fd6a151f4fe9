"""From commit to a read-committed consumer, at 5,000 changes a second, compared with Debezium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from infra.stack.processes.keeper import Guarded
from schemas.errors import HeadraceError
from tests.benchmarks.bench import Bench, Site, less_is_better, median, median_or_none
from tests.benchmarks.debezium import Debezium, has_debezium
from tests.benchmarks.delays import Follower, debezium_clock, headrace_clock, percentile, within
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.producing import producing
from tests.benchmarks.watching import EndWatch, PositionsWatch, await_change

_RATE: Final = 5000
_WARM_SECONDS: Final = 5.0
_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies of all changes after the warm-up, in milliseconds; `rate` is the changes written per second."""

    p50: float
    p99: float
    most: float
    changes: int
    rate: float

    def __str__(self) -> str:
        return (
            f"p50 {self.p50:.1f} ms, p99 {self.p99:.1f} ms, slowest {self.most:.0f} ms,"
            f" of {self.changes:,} changes at {self.rate:,.0f}/s"
        )


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure headrace, then Debezium."""
    rows = max(10_000, bench.rows // 10)
    site = Site(bench, bench.database("latency", rows), "latency")
    ours = bench.repeated("headrace's latency", lambda _: _ours(bench, site, rows), str)
    site.drop()
    theirs: list[Latency] = []
    if has_debezium(bench):
        peer = Debezium(bench, site, "dbz_latency", snapshot=False)
        theirs = bench.repeated("Debezium's latency", lambda _: _theirs(bench, site, peer, rows), str)
        peer.drop()
    yield less_is_better(
        "latency p50", "ms", (each.p50 for each in ours), (each.p50 for each in theirs), Target(at_most=20)
    )
    yield less_is_better(
        "latency p99", "ms", (each.p99 for each in ours), (each.p99 for each in theirs), Target(at_most=100)
    )
    yield Figure(
        "latency, changes written",
        median(each.rate for each in ours),
        "changes/s",
        peer=median_or_none(each.rate for each in theirs),
    )


def _ours(bench: Bench, site: Site, rows: int) -> Latency:
    with PositionsWatch(site) as watch, producing(site) as process:
        watch.until_copied(process)
        await_change(site, EndWatch(site.settings.kafka, site.topics), process)
        with Follower(site.settings.kafka, site.topics, headrace_clock()) as follower:
            return _measured(bench, site, rows, follower, process)


def _theirs(bench: Bench, site: Site, peer: Debezium, rows: int) -> Latency:
    with peer.running() as process:
        await_change(site, EndWatch(site.settings.kafka, peer.topics), process)
        with Follower(site.settings.kafka, peer.topics, debezium_clock) as follower:
            return _measured(bench, site, rows, follower, process)


def _measured(bench: Bench, site: Site, rows: int, follower: Follower, process: Guarded) -> Latency:
    """Write at the given rate and consume meanwhile; every change has to arrive."""
    dsn = bench.kept_private("writer-dsn", site.dsn)
    seconds = _WARM_SECONDS + _SECONDS
    words = ["-m", "tests.benchmarks.paced_writer", str(dsn), str(_RATE), str(seconds), str(rows)]
    (bench.place / "writer.log").unlink(missing_ok=True)
    writer = bench.start("writer", [site.command()[0], *words])
    delays = follower.follow(writer, lambda: int(_report(writer)["changes"]), process)
    report = _report(writer)
    counted = within(delays, _WARM_SECONDS)
    return Latency(
        percentile(counted, 50),
        percentile(counted, 99),
        counted[-1],
        len(counted),
        report["changes"] / report["seconds"],
    )


def _report(writer: Guarded) -> dict[str, float]:
    lines = writer.last_lines(1)
    try:
        report: dict[str, float] = json.loads(lines)
    except ValueError:
        raise HeadraceError(f"the writer failed: {lines}", remedy="see its output") from None
    return report
