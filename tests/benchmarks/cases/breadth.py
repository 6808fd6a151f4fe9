"""A source of many small tables: how long `headrace check`, a first start, and a restart take, and their memory.

Nothing waits for rows here: what is measured is everything that a start does once for each table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from pydantic import BaseModel

from infra.kafka import clients
from infra.kafka.topics import delete_topics, ensure_topics
from infra.settings.model import KafkaSettings
from infra.state.positions import StreamState
from schemas.errors import HeadraceError
from schemas.topics import table_topic
from tests.benchmarks.bench import PATIENCE, SOURCE, Bench, Site
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.machine import peak_megabytes
from tests.benchmarks.producing import producing, write_position
from tests.benchmarks.watching import CopiedTables, PositionsWatch

_TABLES: Final = 1_100
"""The number of tables of GitLab's schema."""

_ROWS: Final = 10


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure a source of 1,100 tables of ten rows."""
    site = _ManyTables(bench, bench.once("many tables", lambda: _filled(bench)))
    checked = site.check()
    bench.say(f"check before the first start: {checked:.1f} s")
    first, memory = site.first_start()
    bench.say(f"first start, until every table is copied: {first:.1f} s, peak {memory:.0f} MB")
    restarted, again = site.restart()
    bench.say(f"restart, until a new change is published: {restarted:.1f} s, peak {again:.0f} MB")
    rechecked = site.check()
    bench.say(f"check with recorded tables: {rechecked:.1f} s")
    # Last: Kafka removes the files of topics that were deleted for a minute, and is slow meanwhile.
    alone = _kafka_alone(bench)
    bench.say(f"Kafka alone, the same topics and a record in each: {alone:.1f} s")
    site.drop()
    named = f"{_TABLES:,} tables"
    yield Figure(f"{named}: check", max(checked, rechecked), "s", target=Target(at_most=5), smaller=True)
    yield Figure(f"{named}: first start until copied", first, "s", alone, Target(at_most=60), smaller=True)
    yield Figure(f"{named}: restart until a change", restarted, "s", target=Target(at_most=10), smaller=True)
    yield Figure(f"{named}: producer memory", max(memory, again), "MB", target=Target(at_most=400), smaller=True)


def _filled(bench: Bench) -> str:
    dsn = bench.stack.postgres.create_database("bench_many_tables")
    with bench.sql(dsn) as connection:
        for number in range(_TABLES):
            connection.execute(
                f"CREATE TABLE many_{number:04d} (id bigint PRIMARY KEY, project_id bigint NOT NULL,"
                f" name text NOT NULL, state smallint, created_at timestamptz NOT NULL DEFAULT now());"
                f" CREATE INDEX ON many_{number:04d} (project_id);"
                f" INSERT INTO many_{number:04d} SELECT n, n * 7, 'row ' || n FROM generate_series(1, {_ROWS}) n"
            )
        connection.execute("ANALYZE")
    bench.say(f"{_TABLES:,} tables of {_ROWS} rows")
    return dsn


def _kafka_alone(bench: Bench) -> float:
    """Return the seconds that Kafka needs for as many new topics, until a first transaction wrote to each."""
    kafka = KafkaSettings(bootstrap_servers=bench.stack.endpoints.bootstrap_servers)
    topics = [f"alone.{number:04d}" for number in range(_TABLES)]
    started = time.monotonic()
    ensure_topics(kafka, topics)
    client = clients.producer(kafka, transactional_id="alone")
    client.init_transactions(PATIENCE)
    client.begin_transaction()
    for topic in topics:
        client.produce(topic, b"row", key=b"key")
    client.commit_transaction(PATIENCE)
    took = time.monotonic() - started
    delete_topics(kafka, topics)
    return took


class _ManyTables:
    """The site of a source of many tables."""

    def __init__(self, bench: Bench, dsn: str) -> None:
        self._bench = bench
        self._site = Site(bench, dsn, "many", tables=["public.many_*"])
        self._site.topics = [
            table_topic("many", "gitlab_main", SOURCE, "public", f"many_{number:04d}") for number in range(_TABLES)
        ]

    def check(self) -> float:
        """Return the seconds that `headrace check` takes; it may find the missing slot's forecast alarming."""
        started = time.monotonic()
        process = self._bench.start("check-many", self._site.command("check"))
        for _ in self._bench.watched("headrace check"):
            if process.poll() is not None:
                break
        if process.poll():
            raise HeadraceError(f"headrace check failed: {process.last_lines()}", remedy="")
        return time.monotonic() - started

    def first_start(self) -> tuple[float, float]:
        """Return the seconds until every table is copied, and the producer's peak memory in MB."""
        return self._timed(CopiedTables(_TABLES).complete)

    def restart(self) -> tuple[float, float]:
        """Return the seconds until a change that was made while the producer was stopped is published; memory."""
        with self._bench.sql(self._site.dsn) as connection:
            connection.execute("UPDATE many_0001 SET state = 1 WHERE id = 1")
            last = write_position(connection)
        return self._timed(lambda record: isinstance(record, StreamState) and record.confirmed_lsn >= last)

    def _timed(self, ends: Callable[[BaseModel], bool]) -> tuple[float, float]:
        with PositionsWatch(self._site) as watch:
            started = time.monotonic()
            with producing(self._site) as process:
                ended = watch.until(ends, process)
                return ended - started, peak_megabytes(process.pid)

    def drop(self) -> None:
        """Remove the slot and the topics."""
        self._site.drop()
