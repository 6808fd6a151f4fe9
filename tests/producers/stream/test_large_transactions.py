"""Transactions of any size are read in progress and published when they commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from consumers.testing.waiting import until
from infra.state.positions import StreamState
from producers.session import opening
from producers.session.loop import Session, Timing
from producers.stream.spill import Spill, SpillDirectory, SpillFailed
from schemas.positions import Lsn
from tests.conftest import Database
from tests.producers.folding import states
from tests.producers.sources import Running, Source, running, settings_for

pytestmark = pytest.mark.stack

SMALL_MEMORY = "-c logical_decoding_work_mem=64kB"
ROWS = "INSERT INTO t SELECT i, repeat('x', 80) FROM generate_series({}, {}) i"


@pytest.fixture
def source(bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path) -> Source:
    connection = database.connect()
    connection.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (0, 'first')")
    dsn = make_conninfo(database.dsn, options=SMALL_MEMORY)
    return Source(settings_for(bootstrap_servers, prefix, dsn, "public.t", spill_directory=tmp_path), connection)


def kept(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def begin_large(
    source: Source, producer: Running, directory: Path, *, first: int, last: int
) -> psycopg.Connection[Any]:
    """Write rows in a transaction that stays open, and wait until the producer has them on disk."""
    connection = psycopg.connect(source.settings.database("main").dsn.get_secret_value())
    connection.execute(ROWS.format(first, last).encode())

    def on_disk() -> bool:
        producer.check()
        return bool(kept(directory))

    until(on_disk, "the transaction on disk")
    return connection


def test_other_transactions_continue_during_large_transaction(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.timing = Timing(commit_events=1_000)
    with running(source) as producer:
        producer.caught_up()
        with begin_large(source, producer, tmp_path, first=1, last=20_000) as large:
            large.execute("SAVEPOINT s")
            large.execute(ROWS.format(20_001, 30_000).encode())
            large.execute("ROLLBACK TO s")
            large.execute("UPDATE t SET v = 'changed' WHERE id % 100 = 0 AND id > 0")
            source.connection.execute("INSERT INTO t VALUES (50000, 'small')")
            producer.caught_up()
            assert states(source.records("public.t")) == {"r": 1, "c": 1}
            large.commit()
        producer.caught_up()
        assert kept(tmp_path) == []
    assert states(source.require_equal("public.t")) == {"r": 1, "c": 20_001, "u": 200}
    assert list(tmp_path.iterdir()) == []


def test_rolled_back_large_transaction_leaves_nothing(source: Source, tmp_path: Path) -> None:
    with running(source) as producer:
        producer.caught_up()
        with begin_large(source, producer, tmp_path, first=1, last=5_000) as large:
            large.rollback()
        producer.caught_up()
        until(lambda: not kept(tmp_path), "the file to go")
    assert states(source.require_equal("public.t")) == {"r": 1}


class FullDisk(SpillDirectory):
    """Accepts no bytes."""

    def transaction(self, xid: int) -> Spill:
        return Spill(Path("/dev/full"), xid)


def test_a_full_disk_loses_nothing(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as faulty:
        faulty.setattr(opening, "SpillDirectory", FullDisk)
        producer = Running(source)
        source.caught_up(producer.check)
        source.connection.execute(ROWS.format(1, 5_000).encode())
        error = producer.ended()
    assert isinstance(error, SpillFailed)
    assert str(error).startswith("/dev has no space left: transaction ")
    with running(source) as again:
        again.caught_up()
    assert states(source.require_equal("public.t")) == {"r": 1, "c": 5_000}


class DiesInTheMiddle(Session):
    """Ends after a Kafka transaction that has only a part of a source transaction."""

    state_at_start: StreamState | None = None

    def _commit(self, *states: Any, **left_out: Any) -> None:
        before = self.state_at_start.ordinal if self.state_at_start else 0
        super()._commit(*states, **left_out)
        if max(before, 1_000) < self._capture.position.ordinal < 59_000:
            raise SystemExit("in the middle")


@pytest.mark.long
@pytest.mark.parametrize("times", [1, 2])
def test_interrupted_large_transaction_resumes_at_its_position(
    source: Source, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    source.timing = Timing(commit_events=1_000)
    with running(source) as producer:
        producer.caught_up()
    source.connection.execute(ROWS.format(1, 60_000).encode())
    reached = [0]
    for _ in range(times):
        monkeypatch.setattr(DiesInTheMiddle, "state_at_start", source.recorded().stream)
        assert isinstance(Running(source, DiesInTheMiddle).ended(), SystemExit)
        stream = source.recorded().stream
        assert stream is not None
        assert stream.ordinal > reached[-1]
        assert stream.confirmed_lsn < stream.commit_lsn == stream.position.commit_lsn > Lsn(0)
        reached.append(stream.ordinal)
    with running(source) as producer:
        producer.caught_up()
    # Each position once: the part published before is not published again.
    assert states(source.require_equal("public.t")) == {"r": 1, "c": 60_000}
