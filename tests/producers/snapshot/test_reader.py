"""Snapshot and stream together on real servers: random work, and each race forced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.postgres.connect import connect
from infra.state.positions import SnapshotState
from producers.publish.table_publisher import TableFeed
from producers.session.copy_phase import Copied
from producers.session.loop import Session
from producers.snapshot.chunk_rules import Unseen
from producers.snapshot.reader import TableGone, plan_chunk, read_chunk
from producers.snapshot.table_snapshot import Bounds
from producers.source.tables import captured_tables
from schemas.positions import Lsn
from schemas.xid_snapshot import Snapshot
from tests.producers.between_chunks import ChunkByChunk
from tests.producers.folding import ops, states
from tests.producers.processes import SCHEMA, Workload
from tests.producers.sources import Source, capturing, copy_all, running

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]


def dsn_of(source: Source) -> str:
    return source.settings.database("main").dsn.get_secret_value()


@pytest.mark.parametrize("before", [4, 5, 6])
def test_connection_that_met_a_lock_reads_on(new_source: NewSource, before: int) -> None:
    """psycopg prepares by itself what is executed for the sixth time."""
    source = new_source(f"{SCHEMA}; INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 20) i", "public.t")
    (table,) = captured_tables(source.connection, "main", source.settings.database("main"), source.settings.prefix)
    with connect(dsn_of(source), name="t", reading=True) as reader, psycopg.connect(dsn_of(source)) as holder:
        for _ in range(before):
            read_chunk(reader, table, Bounds(), 50)
        holder.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            read_chunk(reader, table, Bounds(), 50)
        holder.rollback()
        assert read_chunk(reader, table, Bounds(), 50).rows == 20


@pytest.mark.parametrize("seed", [11, 12])
def test_topic_equals_table_after_random_work_during_snapshot(new_source: NewSource, seed: int) -> None:
    source = new_source(
        f"{SCHEMA}; INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 1500) i",
        "public.t",
        snapshot={"chunk_rows": 7},
    )
    with Workload(dsn_of(source), seed, keys=1500) as work, running(source) as producer:
        producer.caught_up()
        before = work.transactions
        until(lambda: work.transactions > before + 100, "more work")
    copy_all(source)
    records = source.require_equal("public.t")
    assert {"r", "c", "u", "d", "tombstone"} <= set(states(records))


class TruncatesAfterTheLastChunk(ChunkByChunk):
    """The application truncates the table between its last chunk and the stream's next read."""

    done = False

    def _add(self, feed: TableFeed, began: float, copy: Callable[[], Copied | None]) -> Lsn | None:
        lsn = super()._add(feed, began, copy)
        if not feed.copy.unread and not self.done:
            self.done = True
            with connected(self._parts.address.dsn) as connection:
                connection.execute("TRUNCATE t")
                connection.execute("INSERT INTO t VALUES (2, 0, 'new'), (99, 0, 'new')")
        return lsn


@contextmanager
def connected(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def test_changes_after_truncate_are_published_although_chunk_has_them(new_source: NewSource) -> None:
    source = new_source(
        f"{SCHEMA}; INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 20) i",
        "public.t",
        snapshot={"chunk_rows": 7},
    )
    with running(source, TruncatesAfterTheLastChunk) as producer:
        until(lambda: source.state().snapshots.get("public.t") is not None, "a record")
        source.passes(producer.check)
        producer.caught_up()
    records = source.require_equal("public.t")
    assert states(records) == {"r": 20, "t": 2, "c": 2}
    assert ops(records, id=2) == ["r", "c"]


class Killed(BaseException):
    """Simulates the end of the process."""


class DiesAfterTheLastChunk(Session):
    """Ends with everything copied and the stream still before the last chunk."""

    def _commit_chunks(self, stopped: Sequence[tuple[str, SnapshotState]] = ()) -> None:
        super()._commit_chunks(stopped)
        if not any(feed.copy.unread for feed in self._feeds):
            raise Killed


class DiesBeforeItsCommit(Session):
    """Ends with everything read, and nothing of it committed."""

    def _commit_chunks(self, stopped: Sequence[tuple[str, SnapshotState]] = ()) -> None:  # noqa: ARG002  # dies first
        raise Killed


@pytest.mark.parametrize(("dies", "copied"), [(DiesAfterTheLastChunk, 20), (DiesBeforeItsCommit, 2)])
def test_truncate_after_crash_past_last_chunk_is_published(
    new_source: NewSource, dies: type[Session], copied: int
) -> None:
    source = new_source(f"{SCHEMA}; INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 20) i", "public.t")
    with pytest.raises(Killed), running(source, dies) as producer:
        producer.ended()
    source.connection.execute("TRUNCATE t")
    source.connection.execute("INSERT INTO t VALUES (2, 0, 'new')")
    # Received before the stream passes the chunk, by a process that has nothing to copy at its start.
    copy_all(source)
    assert states(source.require_equal("public.t")) == {"r": copied, "t": 2, "c": 1}


class SeesAll(Unseen):
    """A barrier that never waits."""

    def visible_in(self, snapshot: Snapshot) -> bool:  # noqa: ARG002  # it looks at nothing
        return True


class CopiesWhenAllowed(Session):
    """Follows the stream, and copies nothing before `allowed` is set."""

    allowed: threading.Event

    def _copy_phase(self) -> None:
        if self.allowed.is_set():
            super()._copy_phase()


class CopiesWithoutBarrier(CopiesWhenAllowed):
    """Reads chunks whether or not they include what the stream has passed."""

    def _copy_phase(self) -> None:
        self._capture.unseen = SeesAll()
        super()._copy_phase()


@pytest.mark.usefixtures("standby_that_never_answers")
@pytest.mark.parametrize("session", [CopiesWhenAllowed, CopiesWithoutBarrier])
def test_commit_decoded_before_it_is_visible_is_not_lost(
    new_source: NewSource, session: type[CopiesWhenAllowed]
) -> None:
    source = new_source(f"{SCHEMA}; INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 20) i", "public.t")
    session.allowed = threading.Event()
    with connected(dsn_of(source)) as writer, ThreadPoolExecutor(1) as pool:
        writer.execute("SET synchronous_commit = on")
        with running(source, session) as producer:
            until(lambda: source.state().stream is not None, "a first record")
            # What describes the table is held until it is visible; what comes after it is not.
            source.connection.execute("INSERT INTO t VALUES (0, 0, 'describes the table')")
            source.passes(producer.check)
            committing = pool.submit(writer.execute, "INSERT INTO t VALUES (1000, 0, 'late')")
            pid = writer.info.backend_pid
            try:
                waits = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
                until(lambda: source.connection.execute(waits, (pid,)).fetchone() == ("SyncRep",), "the commit to wait")
                source.passes(producer.check)
                session.allowed.set()
                # The copy phase has had its turn between two heartbeats.
                source.passes(producer.check)
                source.passes(producer.check)
                assert source.connection.execute("SELECT count(*) FROM t").fetchone() == (21,)
                waiting = source.state().snapshots["public.t"]
                assert waiting.done == (session is CopiesWithoutBarrier)
            finally:
                source.connection.execute("SELECT pg_cancel_backend(%s)", (pid,))
            committing.result()
            producer.caught_up()
    if session is CopiesWithoutBarrier:
        with pytest.raises(AssertionError, match="1000"):
            source.require_equal("public.t")
    else:
        assert ops(source.require_equal("public.t"), id=1000) == ["r"]


def test_table_captured_later_is_complete(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);"
        "CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1)",
        "public.t",
    )
    copy_all(source)
    source.settings = capturing(source.settings, "public.t", "public.u")
    with psycopg.connect(dsn_of(source)) as before:
        # In neither the stream, which does not publish the table yet, nor a snapshot taken before it commits.
        before.execute("INSERT INTO u VALUES (2)")
        with running(source) as producer:
            until(lambda: "public.u" in source.state().snapshots, "the new table")
            source.connection.execute("INSERT INTO u VALUES (3)")
            source.passes(producer.check)
            source.passes(producer.check)
            assert not source.state().snapshots["public.u"].done
            before.execute("INSERT INTO u VALUES (4)")
            before.commit()
            producer.caught_up()
    assert states(source.require_equal("public.u")) == {"r": 4}
    assert states(source.require_equal("public.t")) == {"r": 1}


def test_locked_table_does_not_delay_stream(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);"
        "CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1)",
        "public.t",
    )
    copy_all(source)
    source.settings = capturing(source.settings, "public.t", "public.u")
    start_waits = threading.Event()
    CopiesWhenAllowed.allowed = start_waits
    with psycopg.connect(dsn_of(source)) as locking, running(source, CopiesWhenAllowed) as producer:
        until(lambda: "public.u" in source.state().snapshots, "the new table")
        locking.execute("LOCK TABLE u IN ACCESS EXCLUSIVE MODE")
        start_waits.set()
        source.passes(producer.check)
        source.connection.execute("INSERT INTO t VALUES (2)")
        source.passes(producer.check)
        source.passes(producer.check)
        assert not source.state().snapshots["public.u"].done
        assert states(source.records("public.t")) == {"r": 1, "c": 1}
        locking.rollback()
        producer.caught_up()
    source.require_equal("public.u")


# Unit tests of the functions.


@pytest.fixture
def source(new_source: NewSource) -> Source:
    return new_source(f"{SCHEMA}; INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 20) i", "public.t")


def table_of(source: Source) -> Any:
    (table,) = captured_tables(source.connection, "main", source.settings.database("main"), source.settings.prefix)
    return table


def test_chunks_are_planned_in_key_order_to_the_end(source: Source) -> None:
    table = table_of(source)
    assert plan_chunk(source.connection, table, Bounds(), 7) == ("7",)
    assert plan_chunk(source.connection, table, Bounds(after=("7",)), 7) == ("14",)
    assert plan_chunk(source.connection, table, Bounds(after=("14",)), 7) is None
    assert plan_chunk(source.connection, table, Bounds(), 20) == ("20",)
    assert plan_chunk(source.connection, table, Bounds(first=("5",), last=("9",)), 4) == ("8",)
    assert plan_chunk(source.connection, table, Bounds(first=("5",), last=("9",)), 6) is None


def test_a_chunk_has_the_rows_of_its_range(source: Source) -> None:
    chunk = read_chunk(source.connection, table_of(source), Bounds(after=("5",), last=("7",)), 7)
    assert (chunk.data, chunk.rows) == (b"6\t0\tv\n7\t0\tv\n", 2)
    assert source.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_chunk_does_not_wait_for_rewrite_and_then_sees_its_rows(source: Source) -> None:
    """A rewritten table is empty in every snapshot taken before the rewrite's end."""
    table = table_of(source)
    with psycopg.connect(dsn_of(source)) as other, connected(dsn_of(source)) as reader:
        other.execute("ALTER TABLE t ALTER COLUMN n TYPE bigint")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            read_chunk(reader, table, Bounds(), 50)
        other.commit()
        chunk = read_chunk(reader, table, Bounds(), 50)
    assert chunk.rows == 20
    assert [column.type_oid for column in chunk.relation.columns] == [23, 20, 25]


def test_dropped_table_is_reported(source: Source) -> None:
    table = table_of(source)
    source.connection.execute("DROP TABLE t")
    with pytest.raises(TableGone):
        plan_chunk(source.connection, table, Bounds(), 7)
    with pytest.raises(TableGone, match=r"table public\.t no longer exists; Remove it"):
        read_chunk(source.connection, table, Bounds(), 7)
    assert source.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


@pytest.mark.long
@pytest.mark.parametrize("schema", ["public", "extensions"])
@pytest.mark.parametrize("key", ["k", "k, n"])
def test_chunks_of_key_with_custom_operators_are_complete_in_any_schema(
    new_source: NewSource, schema: str, key: str
) -> None:
    # In citext's order `b2` is before `C1`; in text's, which a bare `>` means if citext is not in the search_path,
    # after it: a chunk would then have rows from the whole table, and lose those cut off.
    source = new_source(
        f"CREATE SCHEMA IF NOT EXISTS {schema}; CREATE EXTENSION citext SCHEMA {schema};"
        f' CREATE TABLE t (k {schema}.citext COLLATE "C", n int, v text, PRIMARY KEY ({key}));'
        " INSERT INTO t SELECT chr((CASE WHEN i % 2 = 0 THEN 65 ELSE 97 END) + i % 26) || i, i, 'v'"
        " FROM generate_series(1, 500) i",
        "public.t",
        snapshot={"chunk_rows": 7},
    )
    copy_all(source)
    source.require_equal("public.t")
    with connect(dsn_of(source), name="test") as connection:
        (table,) = captured_tables(connection, "main", source.settings.database("main"), source.settings.prefix)
        keys: list[tuple[str, ...]] = []
        sizes = []
        after = None
        while True:
            chunk = read_chunk(connection, table, Bounds(after=after), 7)
            keys += (chunk.key_texts(row, ("k",)) for row in range(chunk.rows))
            sizes.append(chunk.rows)
            if chunk.upto is None:
                break
            after = chunk.upto
    assert len(keys) == len(set(keys)) == 500
    assert set(sizes[:-1]) == {7}
