"""Copying a whole table: rows per second committed to Kafka, compared with Debezium, plain COPY and plain producing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, TopicPartition
from psycopg import pq

from infra.kafka import clients
from infra.kafka.topics import delete_topics, end_offsets, ensure_topic
from infra.settings.model import SnapshotSettings
from producers.publish.kafka_transaction import Relay
from schemas.errors import HeadraceError
from tests.benchmarks.bench import TABLE, Bench, Site, median, median_or_none
from tests.benchmarks.debezium import Debezium, has_debezium
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.producing import Run, copied, cpu_figures
from tests.benchmarks.snapshots import snapshot_runs, snapshot_site

_UNIT: Final = "rows/s"


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure headrace, Debezium and COPY one after another on the same table."""
    ours = snapshot_runs(bench, bench.rows)
    site = snapshot_site(bench, bench.rows)
    two = bench.repeated("headrace's snapshot with two workers", lambda number: _copied_by_two(bench, number), str)
    theirs = peer_runs(bench, site) if has_debezium(bench) else []
    produced = bench.repeated("its records produced alone", lambda n: produce_rate(site, n), "{:,.0f} rows/s".format)
    copies = bench.repeated("COPY … TO STDOUT alone", lambda _: copy_rate(bench, site), "{:,.0f} rows/s".format)
    rate = median(run.rate for run in ours)
    yield Figure(
        "snapshot",
        rate,
        _UNIT,
        peer=median_or_none(run.rate for run in theirs),
        target=Target(at_least=5, ratio=True),
    )
    yield Figure(
        "snapshot, from process start",
        median(run.rate_from_start for run in ours),
        _UNIT,
        peer=median_or_none(run.rate_from_start for run in theirs),
    )
    yield Figure("snapshot, share of COPY alone", rate, _UNIT, peer=median(copies))
    yield Figure("snapshot, share of producing alone", rate, _UNIT, peer=median(produced))
    both = median(run.rate for run in two)
    yield Figure(
        "snapshot with two workers",
        both,
        _UNIT,
        peer=median_or_none(run.rate for run in theirs),
        target=Target(at_least=6, ratio=True),
    )
    yield Figure(
        "snapshot with two workers, share of producing alone",
        both,
        _UNIT,
        peer=median(produced),
        target=Target(at_least=0.65, ratio=True),
    )
    yield Figure("snapshot with two workers, memory", median(run.peak for run in two), "MB", smaller=True)
    yield from cpu_figures("snapshot", ours, theirs)


def _copied_by_two(bench: Bench, number: int) -> Run:
    dsn = bench.database(f"rows_{bench.rows}", bench.rows)
    site = Site(bench, dsn, f"two{number}", snapshot={"workers": 2})
    run = copied(site)
    site.drop()
    return run


def peer_runs(bench: Bench, site: Site) -> list[Run]:
    """Return Debezium's snapshots of the same table."""

    def run(number: int) -> Run:
        peer = Debezium(bench, site, f"dbz_copy{number}", snapshot=True)
        try:
            return peer.timed(bench.rows)
        finally:
            peer.drop()

    return bench.repeated("Debezium's snapshot", run, str)


def produce_rate(site: Site, number: int) -> float:
    """Return the rows per second at which the snapshot's own records are committed to another topic.

    By the producer's own client, in transactions of a chunk each; the records are in memory.
    """
    records, rows = list(_records(site)), SnapshotSettings().chunk_rows
    topic = f"{site.topic}.alone"
    ensure_topic(site.settings.kafka, topic)
    relay = Relay(site.settings.kafka, f"alone{number}", topic)
    began = time.monotonic()
    for place in range(0, len(records), rows):
        relay.send(topic, records[place : place + rows])
        relay.commit()
    seconds = time.monotonic() - began
    relay.close()
    delete_topics(site.settings.kafka, [topic])
    return len(records) / seconds


def _records(site: Site) -> Iterator[dict[str, bytes | None]]:
    """Yield the records of the snapshot's topic."""
    consumer = clients.consumer(site.settings.kafka, "bench-records")
    ends = end_offsets(site.settings.kafka, site.topic)
    consumer.assign([TopicPartition(site.topic, partition, OFFSET_BEGINNING) for partition in ends])
    try:
        while messages := consumer.consume(10_000, timeout=5.0):
            yield from ({"key": each.key(), "value": each.value()} for each in messages if not each.error())
    finally:
        consumer.close()


def copy_rate(bench: Bench, site: Site) -> float:
    """Return the rows per second of a COPY whose rows are read and discarded."""
    with bench.sql(site.dsn) as connection:
        began = time.monotonic()
        result = connection.pgconn.exec_(f"COPY {TABLE} TO STDOUT".encode())
        if result.status != pq.ExecStatus.COPY_OUT:
            raise HeadraceError(f"COPY failed: {result.get_error_message()}")
        read, rows = connection.pgconn.get_copy_data, 0
        while read(0)[0] > 0:
            rows += 1
        seconds = time.monotonic() - began
    if rows != bench.rows:
        raise HeadraceError(f"COPY gave {rows} rows, where {bench.rows} were expected")
    return rows / seconds
