"""From commit to a read-committed consumer, at 5,000 changes a second, compared with Debezium.

The commit time is PostgreSQL's own, which both sides carry as `source.ts_ms`; the arrival time is when a consumer in
this process has the record. Both are precise to at least a millisecond, of the same machine's clock; the commit's is
rounded down, which adds half a millisecond on both sides.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from confluent_kafka import OFFSET_END, TopicPartition

from infra.kafka import clients
from infra.stack.processes.keeper import Guarded
from schemas.codec.header import HeaderReader
from schemas.errors import HeadraceError
from tests.benchmarks.bench import Bench, Site, median, median_or_none
from tests.benchmarks.debezium import Debezium, has_debezium
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.producing import producing
from tests.benchmarks.watching import EndWatch, PositionsWatch, await_change

_RATE: Final = 5000
_WARM_SECONDS: Final = 5.0
_SECONDS: Final = 20.0
_QUIET_SECONDS: Final = 30.0
"""Seconds without a record after which the rest counts as lost."""

_DEBEZIUM_CLOCK: Final = re.compile(rb'"source":\{[^}]*?"ts_ms":(\d+)')

Clock = Callable[[bytes], int]
"""A record's value → its change's commit time, in milliseconds since the epoch."""


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
    yield Figure(
        "latency p50",
        median(each.p50 for each in ours),
        "ms",
        peer=median_or_none(each.p50 for each in theirs),
        target=Target(at_most=20),
        smaller=True,
    )
    yield Figure(
        "latency p99",
        median(each.p99 for each in ours),
        "ms",
        peer=median_or_none(each.p99 for each in theirs),
        target=Target(at_most=100),
        smaller=True,
    )
    yield Figure(
        "latency, changes written",
        median(each.rate for each in ours),
        "changes/s",
        peer=median_or_none(each.rate for each in theirs),
    )


def _ours(bench: Bench, site: Site, rows: int) -> Latency:
    reader = HeaderReader()
    with PositionsWatch(site) as watch, producing(site) as process:
        watch.until_copied(process)
        with contextlib.closing(EndWatch(site.settings.kafka, site.topic)) as ends:
            await_change(site, ends, process)
        return _measured(bench, site, site.topic, rows, lambda value: reader.prefix(value).ts_ms, process)


def _theirs(bench: Bench, site: Site, peer: Debezium, rows: int) -> Latency:
    def clock(value: bytes) -> int:
        found = _DEBEZIUM_CLOCK.search(value)
        if found is None:
            raise HeadraceError("a record of Debezium without source.ts_ms")
        return int(found[1])

    with contextlib.closing(EndWatch(site.settings.kafka, peer.topic)) as ends, peer.running() as process:
        await_change(site, ends, process)
        return _measured(bench, site, peer.topic, rows, clock, process)


def _measured(bench: Bench, site: Site, topic: str, rows: int, clock: Clock, process: Guarded) -> Latency:
    """Write at the given rate and consume meanwhile; every change has to arrive."""
    consumer = clients.consumer(site.settings.kafka, "bench-latency", fetch_wait_max_ms=10)
    found = consumer.list_topics(topic, timeout=30).topics[topic]
    ready: list[bool] = []
    consumer.assign([TopicPartition(topic, partition, OFFSET_END) for partition in found.partitions])
    while consumer.poll(0.5) is not None:  # until it is at the ends
        ready.append(True)
    dsn = bench.kept_private("writer-dsn", site.dsn)
    seconds = _WARM_SECONDS + _SECONDS
    words = ["-m", "tests.benchmarks.paced_writer", str(dsn), str(_RATE), str(seconds), str(rows)]
    (bench.place / "writer.log").unlink(missing_ok=True)
    writer = bench.start("writer", [site.command()[0], *words])
    begun = time.time() * 1000
    taken: list[tuple[int, float]] = []
    report: dict[str, float] = {}
    last = time.monotonic()
    try:
        while not report or len(taken) < report["changes"]:
            message = consumer.poll(0.1)
            now = time.time() * 1000
            if message is not None and message.error() is None:
                value = message.value()
                if value is not None:
                    taken.append((clock(value), now))
                    last = time.monotonic()
                    continue
            if not report and writer.poll() is not None:
                report = _report(writer)
            if process.poll() is not None:
                raise HeadraceError(f"the reader ended: {process.last_lines()}", remedy="")
            if time.monotonic() > last + _QUIET_SECONDS:
                raise HeadraceError(f"{len(taken)} changes arrived; written: {report or 'still writing'}")
    finally:
        writer.kill()
        consumer.close()
    counted = sorted(now - commit for commit, now in taken if commit > begun + _WARM_SECONDS * 1000)
    if not counted:
        raise HeadraceError("all changes were written within the warm-up", remedy="this machine is too busy")
    return Latency(
        counted[len(counted) // 2],
        counted[len(counted) * 99 // 100],
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
