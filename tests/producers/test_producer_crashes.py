"""Producers that are killed, frozen and raced, under a random workload: nothing is lost, nothing is doubled."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from infra.stack import EmbeddedStack, embedded_stack
from tests.producers.processes import SCHEMA, Workload, producing, write_settings
from tests.producers.sources import Source, settings_for, until

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]
ROWS = "INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 300) i"
MANY = {"chunk_rows": 7}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "headrace.toml"


def dsn_of(source: Source) -> str:
    return source.settings.database("main").dsn.get_secret_value()


def recorded(source: Source) -> Callable[[], bool]:
    """Return whether the producer has recorded anything since now."""
    before = source.state()
    return lambda: source.state() != before


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments(new_source: NewSource, config: Path, seed: int) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t", snapshot=MANY)
    write_settings(source.settings, config)
    draw = random.Random(seed)
    with Workload(dsn_of(source), seed, keys=400):
        for _ in range(4):
            with producing(config) as process:
                until(recorded(source), "a first record")
                # How long it may live is the draw; nothing depends on what it manages to do meanwhile.
                threading.Event().wait(draw.uniform(0, 0.6))
                process.check()
                process.send(signal.SIGKILL)
    with producing(config) as process:
        source.caught_up(process.check)
        process.send(signal.SIGTERM)
        assert process.ended() == 0
    source.require_equal("public.t")
    slot, stream = source.slot_state(), source.state().stream
    assert stream is not None
    assert slot.confirmed_flush is not None
    assert slot.confirmed_flush <= stream.confirmed_lsn


def test_a_frozen_producer_ends_when_another_took_over(new_source: NewSource, config: Path) -> None:
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


def test_a_second_producer_takes_over_from_an_idle_one(new_source: NewSource, config: Path) -> None:
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


def test_stopped_by_a_signal_all_that_was_read_is_committed(new_source: NewSource, config: Path) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t", snapshot=MANY)
    write_settings(source.settings, config)
    with producing(config) as process:
        until(lambda: any(each.chunks_done for each in source.state().snapshots.values()), "a chunk")
        process.send(signal.SIGTERM)
        assert process.ended() == 0
    done = source.state().snapshots["public.t"]
    assert len(source.records("public.t")) == done.rows == 7 * done.chunks_done
    with producing(config) as process:
        source.caught_up(process.check)
    assert len(source.require_equal("public.t")) == 300  # no chunk twice
    assert "stopped" in process.log.read_text()


def test_a_killed_producer_reads_no_chunk_twice_that_was_committed(new_source: NewSource, config: Path) -> None:
    source = new_source(f"{SCHEMA}; {ROWS}", "public.t", snapshot=MANY)
    write_settings(source.settings, config)
    with producing(config) as process:
        until(lambda: any(each.chunks_done > 10 for each in source.state().snapshots.values()), "ten chunks")
        process.kill()
    with producing(config) as process:
        source.caught_up(process.check)
    assert len(source.require_equal("public.t")) == 300
    assert source.state().snapshots["public.t"].chunks_done == 43


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedStack]:
    with embedded_stack() as stack:
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


@pytest.mark.parametrize("broken", ["kafka", "postgres", "both", "postgres in order"])
def test_servers_are_killed_meanwhile(own: EmbeddedStack, own_source: Source, config: Path, broken: str) -> None:
    write_settings(own_source.settings, config)
    dsn = dsn_of(own_source)
    with Workload(dsn, 4, truncates=False) as work:
        with producing(config) as process:
            until(recorded(own_source), "a first record")
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
                until(lambda before=before: work.transactions > before + 20, "work to go on")  # type: ignore[misc]
                process.check()
            with psycopg.connect(dsn, autocommit=True) as connection:
                own_source.connection = connection
                own_source.caught_up(process.check)
                process.send(signal.SIGTERM)
                assert process.ended() == 0
    with psycopg.connect(dsn, autocommit=True) as connection, producing(config) as process:
        own_source.connection = connection
        own_source.caught_up(process.check)
        own_source.require_equal("public.t")
