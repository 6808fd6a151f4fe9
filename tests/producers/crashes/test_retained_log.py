"""The source retains no more WAL than its bound: the short form of the benchmark `retained_wal`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.state.snapshot_requests import SnapshotRequest, send_request
from tests.benchmarks.retention import Load, Retained, Retention
from tests.conftest import Database
from tests.producers.sources import Source, running

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]
MIB = 1 << 20
BOUND = 32
SNAPSHOT = {"chunk_rows": 2_000, "max_retained_wal_mb": BOUND}
TABLE = (
    "CREATE TABLE t (id int PRIMARY KEY, n int, v text);"
    "INSERT INTO t SELECT i, 0, repeat('v', 500) FROM generate_series(1, 20000) i"
)


WRITTEN = 3 * BOUND * MIB
RUNS = 3


def require_bound(runs: Iterator[Retained]) -> None:
    """Fail unless one of several runs retains at most two thirds of what was written, which is twice the bound.

    While the machine stalls, more is written; the benchmark shows the bound itself. Without one, each run retains
    nearly all WAL that was written.
    """
    seen = []
    for retained in islice(runs, RUNS):
        seen.append(retained)
        if retained.most * 3 <= retained.written * 2:
            return
    raise AssertionError("; ".join(map(str, seen)))


def dsn_of(source: Source) -> str:
    return source.settings.database("main").dsn.get_secret_value()


def update(connection: psycopg.Connection, number: int) -> None:
    first = number * 200 % 20_000
    connection.execute("UPDATE t SET n = n + 1 WHERE id BETWEEN %s AND %s", (first, first + 199))


@pytest.mark.long
def test_idle_database_releases_wal_of_other_databases(
    new_source: NewSource, new_databases: Callable[..., Database]
) -> None:
    source = new_source(TABLE, "public.t", snapshot=SNAPSHOT)
    other = new_databases(None)
    message = "SELECT pg_logical_emit_message(false, 'test', repeat('x', 500000))"

    def runs() -> Iterator[Retained]:
        while True:
            with Retention(dsn_of(source), source.slot) as retention:
                with Load(other.dsn, lambda connection, _: connection.execute(message), 16):
                    until(lambda: retention.found.written > WRITTEN, "three times the bound is written")
            producer.caught_up()
            yield retention.found

    with running(source) as producer:
        producer.caught_up()
        require_bound(runs())


@pytest.mark.long
def test_snapshot_under_writes_without_a_consumer_bounds_retained_wal(new_source: NewSource) -> None:
    source = new_source(TABLE, "public.t", snapshot=SNAPSHOT)

    def runs() -> Iterator[Retained]:
        while True:
            with Load(dsn_of(source), update, 40), Retention(dsn_of(source), source.slot) as retention:
                with running(source) as producer:
                    until(lambda: retention.found.written > WRITTEN, "three times the bound is written")
                    producer.check()
            with running(source) as producer:
                producer.caught_up()
            source.require_equal("public.t")
            yield retention.found
            send_request(source.connection, SnapshotRequest(table="public.t", from_scratch=True))

    require_bound(runs())
