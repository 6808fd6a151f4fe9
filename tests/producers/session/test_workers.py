"""Several workers that copy tables on real servers: the topic is the table, whatever happens meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import PATIENCE, until
from infra.state.positions import SnapshotState
from infra.state.snapshot_requests import SnapshotRequest, send_request
from producers.session import copy_phase
from producers.session.loop import Session
from producers.snapshot import reader
from tests.producers.folding import states
from tests.producers.processes import SCHEMA
from tests.producers.session.test_loop import KEYS
from tests.producers.sources import Source, running

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]
ROWS = "INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 300) i"
SEVERAL = {"chunk_rows": 7, "workers": 4}
NOT_COMPARED = ("another order", "numbers as text")
"""Kinds of keys that the producer may be unable to compare: their table is read by one worker."""
WORKERS = "FROM pg_stat_activity WHERE application_name = 'headrace produce main worker'"


class Stalls(Session):
    """Has a commit of chunks wait once several were committed, as for a broker that does not answer."""

    go_on = threading.Event()
    stalls = threading.Event()
    commits = 0

    def _commit_chunks(self, stopped: Sequence[tuple[str, SnapshotState]] = ()) -> None:
        self.commits += 1
        if self.commits == 10:
            self.stalls.set()
            assert self.go_on.wait(PATIENCE)
        super()._commit_chunks(stopped)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_table_stays_locked_while_kafka_does_not_answer(new_source: NewSource, workers: int) -> None:
    source = new_source(
        f"{SCHEMA}; {ROWS}; CREATE TABLE u (LIKE t INCLUDING ALL); INSERT INTO u SELECT * FROM t",
        "public.t",
        "public.u",
        snapshot={"chunk_rows": 10, "workers": workers},
    )
    Stalls.go_on.clear()
    Stalls.stalls.clear()
    idle = f"SELECT count(*) {WORKERS} AND state = 'idle in transaction'"
    with running(source, Stalls) as producer:
        try:
            until(Stalls.stalls.is_set, "a commit")
            # A chunk waits for the commit; then its transaction ends, and it begins no other.
            until(lambda: source.connection.execute(idle).fetchone() == (0,), "the tables to be unlocked")
            with source.connection.transaction():
                source.connection.execute("LOCK TABLE t, u IN ACCESS EXCLUSIVE MODE")
        finally:
            Stalls.go_on.set()
        producer.caught_up()
    source.require_equal("public.t")
    source.require_equal("public.u")


class Gate:
    """Replaces the reading of chunks: those that were read wait until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.read: list[tuple[Any, ...]] = []
        inner = reader.read_chunk

        def read_chunk(connection: Any, table: Any, bounds: Any, *arguments: Any, **named: Any) -> Any:
            chunk = inner(connection, table, bounds, *arguments, **named)
            self.read.append((table.name, bounds.after, chunk.upto))
            assert self.open.wait(PATIENCE)
            return chunk

        monkeypatch.setattr(copy_phase, "read_chunk", read_chunk)

    def waits_with(self, count: int) -> None:
        until(lambda: len(self.read) >= count, f"{count} chunks to be read at the same time")


@pytest.mark.parametrize("kind", KEYS)
def test_workers_divide_every_kind_of_key(new_source: NewSource, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, values, _ = KEYS[kind]
    source = new_source(
        f"CREATE TABLE t ({columns}, v text NOT NULL); INSERT INTO t SELECT {values} FROM generate_series(1, 50) i",
        "public.t",
        snapshot=SEVERAL,
    )
    gate = Gate(monkeypatch)
    with running(source) as producer:
        gate.waits_with(1 if kind in NOT_COMPARED else 4)
        source.connection.execute("UPDATE t SET v = 'x'")
        source.connection.execute("DELETE FROM t WHERE ctid IN (SELECT ctid FROM t LIMIT 10)")
        gate.open.set()
        producer.caught_up()
    source.require_equal("public.t")
    starts = [after for _, after, _ in gate.read]
    assert len(set(starts)) == len(starts), "a range was given out twice"


def test_workers_read_several_tables_at_once(new_source: NewSource, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"t{number}" for number in range(6)]
    source = new_source(
        "; ".join(
            f"CREATE TABLE {name} (id int PRIMARY KEY); INSERT INTO {name} SELECT generate_series(1, 5)"
            for name in names
        ),
        *(f"public.{name}" for name in names),
        snapshot=SEVERAL,
    )
    gate = Gate(monkeypatch)
    with running(source) as producer:
        gate.waits_with(4)
        assert len({table for table, *_ in gate.read}) == 4
        gate.open.set()
        producer.caught_up()
        until(lambda: source.connection.execute(f"SELECT 1 {WORKERS}").fetchone() is None, "the workers to leave")
    for name in names:
        assert states(source.require_equal(f"public.{name}")) == {"r": 5}


def test_wide_rows_end_a_chunk_early_and_its_rest_is_read(
    new_source: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_ALL_CHUNKS_BYTES", 4 * 10_000)
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY, v text);"
        "INSERT INTO t SELECT i, repeat('x', CASE WHEN i % 60 > 20 THEN 2000 ELSE 1 END)"
        " FROM generate_series(1, 300) i",
        "public.t",
        snapshot={"chunk_rows": 20, "workers": 4},
    )
    with running(source) as producer:
        producer.caught_up()
    assert states(source.require_equal("public.t")) == {"r": 300}


def test_lost_connection_of_a_worker_costs_its_chunk(new_source: NewSource, monkeypatch: pytest.MonkeyPatch) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t", snapshot=SEVERAL)
    gate = Gate(monkeypatch)
    with running(source) as producer:
        gate.waits_with(4)
        source.connection.execute(f"SELECT pg_terminate_backend(pid) {WORKERS}")
        gate.open.set()
        producer.caught_up()
    source.require_equal("public.t")


def test_table_that_is_dropped_while_workers_read_it_is_stopped(
    new_source: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = new_source(
        f"{SCHEMA}; {ROWS}; CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other SELECT generate_series(1, 30)",
        "public.t",
        "public.other",
        snapshot=SEVERAL,
    )
    gate = Gate(monkeypatch)
    with running(source) as producer:
        gate.waits_with(4)
        source.connection.execute("DROP TABLE t")
        gate.open.set()
        until(lambda: source.state().snapshots["public.other"].done, "the other table")
        until(lambda: source.state().snapshots["public.t"].stopped is not None, "the table to be stopped")
        producer.stop.set()
    source.require_equal("public.other")


def test_truncate_between_two_chunks_reaches_the_topic(new_source: NewSource, monkeypatch: pytest.MonkeyPatch) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t", snapshot=SEVERAL)
    gate = Gate(monkeypatch)
    with running(source) as producer:
        gate.waits_with(4)
        source.connection.execute("TRUNCATE t")
        source.connection.execute("INSERT INTO t VALUES (5, 1, 'new'), (299, 1, 'new')")
        gate.open.set()
        producer.caught_up()
    source.require_equal("public.t")


def test_commit_that_a_later_chunk_shows_and_an_earlier_one_does_not(
    new_source: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One transaction writes the rows of a chunk that was read before it and of one that was read after it."""
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t", snapshot={"chunk_rows": 7, "workers": 2})
    first, wrote = iter((True,)), threading.Event()
    inner = reader.read_chunk

    def read_chunk(connection: Any, table: Any, bounds: Any, *arguments: Any, **named: Any) -> Any:
        chunk = inner(connection, table, bounds, *arguments, **named)
        if next(first, False):
            with psycopg.connect(dsn_of(source)) as writer:
                writer.execute("UPDATE t SET n = 1 WHERE id IN (1, 100, 290)")
            wrote.set()
        return chunk

    monkeypatch.setattr(copy_phase, "read_chunk", read_chunk)
    with running(source) as producer:
        assert wrote.wait(PATIENCE)
        producer.caught_up()
    source.require_equal("public.t")


def test_range_is_re_snapshotted_under_work_while_another_table_is_copied(
    new_source: NewSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = new_source(
        f"{SCHEMA}; {ROWS}; CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other SELECT generate_series(1, 300)",
        "public.t",
        "public.other",
        snapshot=SEVERAL,
    )
    with running(source) as producer:
        producer.caught_up()
        gate = Gate(monkeypatch)
        # In one transaction: while a chunk of the first is read, the stream with the second is not.
        with source.connection.transaction():
            for table in ("public.t", "public.other"):
                send_request(source.connection, SnapshotRequest(table=table, first=("20",), last=("90",)))
        gate.waits_with(2)
        assert {table for table, *_ in gate.read} == {"public.t", "public.other"}
        source.connection.execute("UPDATE t SET n = n + 1 WHERE id < 50")
        source.connection.execute("DELETE FROM t WHERE id BETWEEN 60 AND 70")
        gate.open.set()
        until(lambda: not any(each.under_way for each in source.state().snapshots.values()), "the ranges")
        producer.caught_up()
    source.require_equal("public.t")
    source.require_equal("public.other")


def dsn_of(source: Source) -> str:
    return source.settings.database("main").dsn.get_secret_value()
