"""Copying a whole table: rows per second committed to Kafka, compared with Debezium and plain COPY."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from psycopg import pq

from schemas.errors import HeadraceError
from tests.benchmarks.bench import TABLE, Bench, Site, median, median_or_none
from tests.benchmarks.debezium import Debezium, has_debezium
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.producing import Run, cpu_figures
from tests.benchmarks.snapshots import snapshot_runs, snapshot_site

_UNIT: Final = "rows/s"


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure headrace, Debezium and COPY one after another on the same table."""
    ours = snapshot_runs(bench, bench.rows)
    site = snapshot_site(bench, bench.rows)
    theirs = peer_runs(bench, site) if has_debezium(bench) else []
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
    yield from cpu_figures("snapshot", ours, theirs)


def peer_runs(bench: Bench, site: Site) -> list[Run]:
    """Return Debezium's snapshots of the same table."""

    def run(number: int) -> Run:
        peer = Debezium(bench, site, f"dbz_copy{number}", snapshot=True)
        try:
            return peer.timed(bench.rows)
        finally:
            peer.drop()

    return bench.repeated("Debezium's snapshot", run, str)


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
