"""Producers that are killed, frozen and raced, under a random workload: nothing is lost, nothing is doubled."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.stack import EmbeddedStack, embedded_stack
from infra.state.positions import IncompleteState
from infra.state.snapshot_requests import SnapshotRequest
from producers.snapshot.reader import CHUNKS_EACH
from producers.source import slots
from schemas.events import UNCHANGED
from tests.conftest import Database
from tests.producers.crashes.dying import chunks_read_again, dying
from tests.producers.crashes.failpoints import POINTS, Arming
from tests.producers.crashes.killing import TABLE, Crashes
from tests.producers.processes import SCHEMA, Process, Workload, producing, write_settings
from tests.producers.sources import Source, settings_for

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]
ROWS = "INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 300) i"
MANY = {"chunk_rows": 7}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "headrace.toml"


def dsn_of(source: Source) -> str:
    return source.settings.database("main").dsn.get_secret_value()


@pytest.fixture
def crashes(bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path) -> Crashes:
    return Crashes(database.connect, bootstrap_servers, prefix, database.dsn, tmp_path)


FIRST_SNAPSHOT = (
    Arming("publication set"),
    Arming("slot made, nothing recorded"),
    Arming("fenced, nothing claimed"),
    Arming("claimed, not reading"),
    Arming("chunk read", 3),
    Arming("chunk added, not committed", 2),
    Arming("before Kafka's commit", 4),
    Arming("before Kafka's commit", 3, delay=0.002),  # in the middle of it
    Arming("after Kafka's commit", 4),
    Arming("before the confirmation", 3),
    Arming("after the confirmation", 3),
    Arming("from stream to copy"),
    Arming("from copy to stream", 2),
    Arming("all copied"),
)
LARGE_TRANSACTIONS = (
    Arming("in progress, some on disk", 2),
    Arming("committed, not read back", 2),
    Arming("half of it published"),
    Arming("half of it published", 3),
    Arming("read back, not forgotten", 2),
    Arming("in progress, some on disk", 9),
    Arming("before Kafka's commit", 5),
    Arming("before Kafka's commit", 4, delay=0.003),
    Arming("after Kafka's commit", 5),
)
READ_AGAIN = (
    Arming("request taken, not recorded"),
    Arming("chunk read", 2),
    Arming("chunk added, not committed", 3),
    Arming("after Kafka's commit", 8),
    Arming("from stream to copy", 2),
)
READ_ANEW = (
    Arming("request taken, not recorded"),
    Arming("topic emptied, not committed"),
    Arming("claimed, not reading"),
    Arming("chunk read", 4),
)


ROWS_BY_KEY = (
    Arming("row noted, not read"),
    Arming("row read, not committed"),
    Arming("after Kafka's commit", 6),
)


@pytest.mark.long
def test_producer_killed_at_every_point_of_a_first_snapshot(crashes: Crashes) -> None:
    require_survival(crashes, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("workers", [2, 4])
def test_producer_with_workers_killed_at_every_point_of_a_first_snapshot(
    bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path, workers: int
) -> None:
    crashes = Crashes(database.connect, bootstrap_servers, prefix, database.dsn, tmp_path, workers=workers)
    require_survival(crashes, seed=workers)


def require_survival(crashes: Crashes, seed: int) -> None:
    """Kill the producer at every point of a first snapshot, under work of this seed."""
    with crashes.work(seed):
        for arming in FIRST_SNAPSHOT:
            crashes.dies_at(arming)
    crashes.settle()
    assert crashes.prove() >= 3


@pytest.mark.long
@pytest.mark.parametrize("workers", [2, 4])
def test_producer_with_workers_killed_at_random_moments(
    bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path, workers: int
) -> None:
    crashes = Crashes(database.connect, bootstrap_servers, prefix, database.dsn, tmp_path, workers=workers, rows=2000)
    draw = random.Random(workers)
    with crashes.work(workers, truncates=True):
        for _ in range(4):
            crashes.dies_within(draw.uniform(0.5, 2.0), None)
    crashes.settle()
    crashes.prove()


@pytest.mark.long
def test_start_with_another_number_of_workers_continues(
    bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path
) -> None:
    crashes = Crashes(database.connect, bootstrap_servers, prefix, database.dsn, tmp_path, workers=4)
    with crashes.work(5):
        for workers in (4, 1, 3, 2):
            crashes.starts_with(workers)
            crashes.dies_at(Arming("chunk added, not committed", 6))
    crashes.settle()
    crashes.prove()


@pytest.mark.long
def test_producer_killed_at_every_point_of_large_transactions(crashes: Crashes) -> None:
    with crashes.work(2, large=25):
        for arming in LARGE_TRANSACTIONS:
            crashes.dies_at(arming)
    crashes.settle()
    crashes.prove()


@pytest.mark.long
def test_producer_killed_at_every_point_of_a_re_snapshot(crashes: Crashes) -> None:
    crashes.settle()
    with crashes.work(3):
        crashes.ask(SnapshotRequest(table=TABLE))
        for arming in READ_AGAIN:
            crashes.dies_at(arming)
        crashes.settle()
        crashes.ask(SnapshotRequest(table=TABLE, from_scratch=True))
        for arming in READ_ANEW:
            crashes.dies_at(arming)
    crashes.settle()
    assert crashes.prove() >= 2


@pytest.mark.long
def test_truncate_before_the_first_chunk_is_not_counted_as_a_repeated_chunk(crashes: Crashes) -> None:
    # The stream reaches the truncate when much is copied: the truncate is older than the noted state of the table.
    crashes.dies_at(Arming("claimed, not reading"))
    crashes.source.connection.execute("TRUNCATE t")
    with crashes.work(4):
        crashes.settle()
    crashes.settle()
    crashes.prove()


def test_no_named_point_is_left_out() -> None:
    reached = (*FIRST_SNAPSHOT, *LARGE_TRANSACTIONS, *READ_AGAIN, *READ_ANEW, *ROWS_BY_KEY)
    assert {arming.point for arming in reached} == POINTS.keys()


@pytest.mark.long
def test_producer_killed_before_it_reads_an_incomplete_row(new_source: NewSource, config: Path, tmp_path: Path) -> None:
    large = "SELECT i, 0, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 200) WHERE i > 0)"
    source = new_source(f"{SCHEMA}; INSERT INTO t {large} FROM generate_series(1, 20) i", "public.t")
    write_settings(source.settings, config)
    journal = tmp_path / "journal"
    with dying(config, journal) as process:
        source.caught_up(process.check)
    for number, arming in enumerate(ROWS_BY_KEY):
        with dying(config, journal, arming) as process:
            until(lambda: process.has_ended or source.slot_state().active_pid is not None, "it to read")
            for key in (number, number + 10):
                source.connection.execute("UPDATE t SET id = id + 100 WHERE id = %s", (key + 1,))
            assert process.ended() == -signal.SIGKILL, process.log.read_text()
        # What is written before the next start has to come after the row, and what is gone not at all.
        source.connection.execute("UPDATE t SET n = n + 1, v = 'small' WHERE id = %s", (number + 101,))
        source.connection.execute("DELETE FROM t WHERE id = %s", (number + 111,))
    with dying(config, journal) as process:
        source.caught_up(process.check)
        until(lambda: source.state().snapshots["public.t"].incomplete == IncompleteState(), "the rows")
        process.check()
    records = source.require_equal("public.t")
    last = {record.raw_key: record.event for record in records}
    assert not [event for event in last.values() if event and event.after and UNCHANGED in event.after.values()]


@pytest.mark.parametrize("seed", [1, 2])
def test_producer_killed_at_random_moments(crashes: Crashes, seed: int) -> None:
    draw = random.Random(seed)
    with crashes.work(seed, truncates=True):
        for _ in range(4):
            # Its lifetime is random; nothing depends on its progress.
            crashes.dies_within(draw.uniform(0.5, 2.0), None)
    crashes.settle()
    crashes.prove()


@pytest.mark.long
def test_frozen_producer_ends_when_another_took_over(new_source: NewSource, config: Path) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t", snapshot=MANY)
    write_settings(source.settings, config)
    with Workload(dsn_of(source), 3):
        with producing(config) as frozen:
            until(lambda: any(each.chunks_done > 3 for each in source.state().snapshots.values()), "a few chunks")
            frozen.send(signal.SIGSTOP)
            with producing(write_settings(source.settings, config.with_name("second.toml"))) as second:
                source.caught_up(second.check)
                frozen.send(signal.SIGCONT)
                assert frozen.ended() == 3
                assert "took over" in frozen.log.read_text().splitlines()[-1]
                source.caught_up(second.check)
                second.send(signal.SIGTERM)
                assert second.ended() == 0
    # What was written after the second ended is read by a third.
    with producing(config) as third:
        source.caught_up(third.check)
    source.require_equal("public.t")


def test_second_producer_takes_over_from_an_idle_one(new_source: NewSource, config: Path) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t")
    write_settings(source.settings, config)
    with producing(config) as first:
        source.caught_up(first.check)
        with producing(write_settings(source.settings, config.with_name("second.toml"))) as second:
            assert first.ended() == 3
            assert "took over" in first.log.read_text().splitlines()[-1]
            source.connection.execute("INSERT INTO t VALUES (1000, 0, NULL)")
            source.caught_up(second.check)
            second.check()
    source.require_equal("public.t")


@pytest.mark.long
def test_stop_signal_commits_everything_that_was_read(new_source: NewSource, config: Path) -> None:
    # With so many rows it is still running when it is stopped; otherwise all their chunks are full.
    rows = "INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 2100) i"
    source = new_source(f"{SCHEMA}; {rows}", "public.t", snapshot=MANY)
    write_settings(source.settings, config)
    with producing(config) as process:
        until(lambda: any(each.chunks_done for each in source.state().snapshots.values()), "a chunk")
        process.send(signal.SIGTERM)
        assert process.ended() == 0
    done = source.recorded().snapshots["public.t"]
    assert len(source.records("public.t")) == done.rows == MANY["chunk_rows"] // CHUNKS_EACH * done.chunks_done
    with producing(config) as process:
        source.caught_up(process.check)
    assert len(source.require_equal("public.t")) == 2100  # no chunk twice
    assert "stopped" in process.log.read_text()


def lines_of(log: Path, event: str) -> list[dict[str, object]]:
    """Return the log's lines of an event, each with the fields of a snapshot's progress."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = ("table", "rows", "chunks_done", "chunks", "chunk_rows", "chunk")
    return [{name: line[name] for name in told if name in line} for line in lines if line["event"].startswith(event)]


def test_restart_after_a_kill_at_80_percent_logs_the_repeated_chunk(
    new_source: NewSource, config: Path, tmp_path: Path
) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}; ANALYZE t", "public.t", snapshot={"chunk_rows": 6})
    write_settings(source.settings, config)
    journal = tmp_path / "journal"
    with dying(config, journal, Arming("chunk read", 81)) as process:
        assert process.ended() == -signal.SIGKILL
    done = source.recorded().snapshots["public.t"].chunks_done
    assert 79 <= done <= 80, "more than two chunks were in progress"
    process.log.unlink()
    with dying(config, journal) as process:
        source.caught_up(process.check)
    at_start = {"table": "public.t", "rows": 3 * done, "chunks_done": done, "chunks": 100, "chunk_rows": 6}
    assert lines_of(process.log, "snapshot resumed") == [at_start]
    again = {"table": "public.t", "rows": 3, "chunk": done + 1}
    assert lines_of(process.log, "first chunk after resume copied") == [again]
    # It is the first of those that were read twice by both processes' journals; and no row is in the topic twice.
    assert chunks_read_again(journal) == [0, 81 - done]
    assert len(source.require_equal("public.t")) == 300


def test_producer_stopped_while_its_new_slot_waits_for_a_transaction(
    new_source: NewSource, config: Path, tmp_path: Path
) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t")
    write_settings(source.settings, config)
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(dsn_of(source)) as writer:
        writer.execute("INSERT INTO t VALUES (1000, 0, NULL)")
        with dying(config, tmp_path / "journal") as process:
            until(lambda: source.connection.execute(waits).fetchone() is not None, "the producer to wait")
            process.send(signal.SIGTERM)
            # The writer still has its transaction open: only the signal can have ended the wait.
            assert process.ended() == 0, process.log.read_text()
        writer.commit()
    assert slots.read(source.connection, source.slot) is None
    with dying(config, tmp_path / "journal") as process:
        source.caught_up(process.check)
    source.require_equal("public.t")


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedStack]:
    with embedded_stack(fsync=False) as stack:
        yield stack


@pytest.fixture
def own_source(own: EmbeddedStack, prefix: str) -> Iterator[Source]:
    name = f"d_{prefix}"
    dsn = own.postgres.create_database(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SCHEMA)
        connection.execute(ROWS)
    settings = settings_for(own.endpoints.bootstrap_servers, prefix, dsn, "public.t", snapshot=MANY)
    yield Source(settings, connection)
    own.postgres.start()
    own.kafka.start()
    own.postgres.drop_database(name)


@contextmanager
def unless_the_broker_forgot(process: Process, broker: EmbeddedStack) -> Iterator[None]:
    """Skip the rest if a broker without replicas lost a commit, and the producer refused the gap.

    See docs/how-to/recovery.md, "A Kafka of one broker": only a broker with replicas can prevent it.
    """
    try:
        yield
    except AssertionError:
        refused = process.has_ended and "ahead of the topics" in process.log.read_text()
        if refused and "these partitions are likely deleted already" in broker.kafka.brokers[1].log.read_text():
            pytest.skip("the broker that was killed does not show what it had committed, and the producer refused")
        raise


@pytest.mark.parametrize(
    "broken",
    ["postgres", *(pytest.param(each, marks=pytest.mark.long) for each in ("kafka", "both", "postgres in order"))],
)
def test_producer_survives_killed_servers(own: EmbeddedStack, own_source: Source, config: Path, broken: str) -> None:
    write_settings(own_source.settings, config)
    dsn = dsn_of(own_source)
    with Workload(dsn, 4, truncates=False) as work:
        with producing(config) as process, unless_the_broker_forgot(process, own):
            # A producer does not wait for a server that fails before its first session was opened.
            until(lambda: any(each.chunks_done for each in own_source.state().snapshots.values()), "a chunk")
            for _ in range(2):
                if broken in ("kafka", "both"):
                    own.kafka.kill()
                if broken in ("postgres", "both"):
                    own.postgres.kill()
                if broken == "postgres in order":
                    own.postgres.stop()
                own.postgres.start()
                own.kafka.start()
                before = work.transactions
                until(lambda before=before: work.transactions > before + 20, "work to continue")  # type: ignore[misc]
                process.check()
            with psycopg.connect(dsn, autocommit=True) as connection:
                own_source.connection = connection
                own_source.caught_up(process.check)
                process.send(signal.SIGTERM)
                assert process.ended() == 0
    with psycopg.connect(dsn, autocommit=True) as connection, producing(config) as process:
        own_source.connection = connection
        own_source.caught_up(process.check)
        own_source.require_equal("public.t", broker_died=broken in ("kafka", "both"))
