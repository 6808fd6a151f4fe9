"""A migration is complete once the snapshot was read and the database counts no remaining rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import psycopg
import pytest
import structlog
from psycopg import sql

from consumers.contract.migration import Cursor
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.replay import replay
from consumers.operations.status import gather
from consumers.runtime import completion
from consumers.runtime.assembly import consumer_of
from consumers.runtime.completion import RowsLeft
from consumers.runtime.consumer import Consumer
from consumers.runtime.totals import Totals
from consumers.testing.waiting import PATIENCE, until
from infra.kafka import clients, topics
from infra.settings.model import MigrationSettings, Settings
from infra.state.positions import SnapshotState, StreamState, record_key
from schemas.errors import HeadraceError, OwnershipMoved
from schemas.positions import Lsn, parse_lsn
from schemas.topics import positions_topic
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, Feed, fill, written

pytestmark = pytest.mark.stack

CatchUp = Callable[..., Totals]
TABLE = "public.container_repositories"


class Positions:
    """Records a producer's state."""

    def __init__(self, settings: Settings, feed: Feed) -> None:
        self._topic = positions_topic(settings.prefix)
        topics.ensure_topic(settings.kafka, self._topic, partitions=1)
        self._producer = clients.producer(settings.kafka)
        self._of = feed.topic

    def snapshot(self, *, done: bool) -> None:
        state = SnapshotState(source="main", table=TABLE, topic=self._of, done=done, chunks_done=3, chunks=9)
        self._record(record_key("main", TABLE), state.model_dump_json())

    def confirmed(self, lsn: Lsn) -> None:
        state = StreamState(
            source="main",
            instance="i",
            slot="s",
            system_identifier="1",
            commit_lsn=lsn,
            ordinal=0,
            confirmed_lsn=lsn,
            ts_ms=0,
        )
        self._record(record_key("main"), state.model_dump_json())

    def _record(self, key: bytes, value: str) -> None:
        self._producer.produce(self._topic, key=key, value=value)
        assert self._producer.flush(120) == 0


@pytest.fixture
def positions(settings: Settings, feed: Feed) -> Positions:
    return Positions(settings, feed)


@pytest.fixture
def completed(connection: psycopg.Connection[Any]) -> Callable[[], bool]:
    return lambda: connection.execute("SELECT completed_at IS NOT NULL FROM headrace.migrations").fetchone() == (True,)


def finalizer(settings: Settings) -> Consumer:
    work = SkipResets.configure(settings.migration("skip_resets"))
    return consumer_of(settings, work, "main", stopping=threading.Event(), until_complete=True)


def test_migration_is_complete_after_snapshot_end_without_remaining_rows(
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: CatchUp,
    settings: Settings,
    positions: Positions,
    completed: Callable[[], bool],
) -> None:
    fill(connection, {1: TOO_MANY_TAGS, 2: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    catch_up()
    assert not completed(), "no producer has recorded anything"
    positions.snapshot(done=False)
    catch_up()
    assert not completed(), "the snapshot is not done"
    positions.snapshot(done=True)
    catch_up()
    assert not completed(), "row 2 remains"
    feed.snapshot({2: TOO_MANY_TAGS})
    assert catch_up().applied == 1
    assert completed()
    (found,) = [one for one in gather(settings)["migrations"] if one["name"] == "skip_resets"]
    assert found["state"] == "complete"


def test_start_after_completion_returns_immediately_until_replay(
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: CatchUp,
    settings: Settings,
    positions: Positions,
    completed: Callable[[], bool],
) -> None:
    positions.snapshot(done=True)
    catch_up()
    assert completed()
    feed.snapshot({1: DEFAULT})
    assert catch_up().events == 0, "no rows remain, so it does not run again unnecessarily"
    going_on = {"skip_resets": MigrationSettings(continuous=True)}
    assert catch_up(settings.model_copy(update={"migrations": going_on})).events == 1

    replay(settings, SkipResets, "main")
    assert not completed()
    assert catch_up().events == 1
    assert completed()


def test_start_after_completion_continues_if_rows_remain(
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: CatchUp,
    positions: Positions,
    completed: Callable[[], bool],
) -> None:
    positions.snapshot(done=True)
    catch_up()
    assert completed()
    fill(connection, {1: TOO_MANY_TAGS, 2: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    assert catch_up().applied == 1
    assert not completed(), "row 2 has no event yet"
    feed.snapshot({2: TOO_MANY_TAGS})
    assert catch_up().applied == 1
    assert completed()


def test_start_after_completion_with_rows_remaining_is_refused_without_ownership(
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: CatchUp,
    positions: Positions,
    completed: Callable[[], bool],
) -> None:
    positions.snapshot(done=True)
    catch_up()
    fill(connection, {1: TOO_MANY_TAGS})
    connection.execute("UPDATE headrace.schema_ownership SET owner = 'ci', epoch = 2")
    with pytest.raises(OwnershipMoved, match="gitlab_main is owned by ci, not by main"):
        catch_up()
    assert completed()


class CountsSlowly(SkipResets):
    """Its count exceeds the role's statement_timeout and the limit set here."""

    def remaining(self, cursor: Cursor) -> int:
        cursor.execute(
            "SELECT count(*) FROM public.container_repositories, pg_sleep(2)"
            " WHERE migration_state = 'import_skipped' AND migration_skipped_reason = 2"
        )
        row = cursor.fetchone()
        assert row is not None
        return int(row[0])


class CannotCount(SkipResets):
    """Its count fails."""

    def remaining(self, cursor: Cursor) -> int:
        cursor.execute("SELECT count(*) FROM public.container_repositoriez")
        return 0


@pytest.fixture
def impatient(connection: psycopg.Connection[Any]) -> None:
    """Every role has a statement_timeout of a second, as many of GitLab's have fifteen."""
    name = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("ALTER DATABASE {} SET statement_timeout = '1s'").format(name))


@pytest.mark.usefixtures("impatient")
def test_count_may_exceed_the_roles_statement_timeout(
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: CatchUp,
    settings: Settings,
    positions: Positions,
    completed: Callable[[], bool],
) -> None:
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    positions.snapshot(done=True)
    slow = CountsSlowly.configure(settings.migration("skip_resets"))
    assert catch_up(settings, slow).applied == 1
    assert completed()


@pytest.mark.parametrize("kind", [CountsSlowly, CannotCount])
@pytest.mark.usefixtures("impatient")
def test_slow_or_failing_count_does_not_stop_applying(
    kind: type[SkipResets],
    feed: Feed,
    connection: psycopg.Connection[Any],
    settings: Settings,
    positions: Positions,
    completed: Callable[[], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(completion, "COUNT_MS", 100)
    monkeypatch.setattr(completion, "_LONGEST_COUNT_MS", 400)
    monkeypatch.setattr(completion, "_COUNT_SHARE", 1.0)
    fill(connection, dict.fromkeys(range(1, 7), TOO_MANY_TAGS))
    positions.snapshot(done=True)
    stopping = threading.Event()
    member = consumer_of(settings, kind.configure(settings.migration("skip_resets")), "main", stopping=stopping)
    with structlog.testing.capture_logs() as lines, ThreadPoolExecutor(1) as pool:
        working = pool.submit(member.run)
        try:
            until(lambda: "completion not verified" in str(lines), "it logs that it could not count")
            for key in range(1, 7):
                feed.snapshot({key: TOO_MANY_TAGS})
                until(lambda key=key: key in written(connection), "it continues applying")  # type: ignore[misc]
        finally:
            stopping.set()
            working.result(PATIENCE)
    assert not completed()
    if kind is CountsSlowly:
        assert "CREATE INDEX CONCURRENTLY" in str(lines), "the hint is about the count"
        assert "sub_batch_size" not in str(lines)
    else:
        assert 'relation "public.container_repositoriez" does not exist' in str(lines)


def test_finalize_reports_that_remaining_rows_cannot_be_counted(
    feed: Feed, settings: Settings, positions: Positions, connection: psycopg.Connection[Any]
) -> None:
    feed.snapshot({1: DEFAULT})
    positions.snapshot(done=True)
    work = CannotCount.configure(settings.migration("skip_resets"))
    with pytest.raises(HeadraceError, match="the remaining rows cannot be counted: relation"):
        consumer_of(settings, work, "main", stopping=threading.Event(), until_complete=True).run()


class CountsBefore(SkipResets):
    """Changes something between the count and the transaction that sets the flag."""

    between: ClassVar[Callable[[], None]]
    counts: ClassVar[int] = 0

    def remaining(self, cursor: Cursor) -> int:
        counted = super().remaining(cursor)
        kind = type(self)
        kind.counts += 1
        if kind.counts == 1:
            kind.between()
        return counted


@pytest.mark.parametrize("what", ["rows", "ledger", "paused", "run"])
def test_completion_flag_is_set_only_if_its_conditions_hold_under_the_lock(
    what: str,
    feed: Feed,
    connection: psycopg.Connection[Any],
    settings: Settings,
    catch_up: CatchUp,
    positions: Positions,
    completed: Callable[[], bool],
) -> None:
    feed.snapshot({1: DEFAULT})
    positions.snapshot(done=True)
    changes: dict[str, Callable[[], object]] = {
        "rows": lambda: fill(connection, {2: TOO_MANY_TAGS}),
        "ledger": lambda: connection.execute("UPDATE headrace.progress SET next_offset = 0"),
        "paused": lambda: connection.execute("UPDATE headrace.migrations SET paused = true"),
        "run": lambda: connection.execute("UPDATE headrace.migrations SET run = 2"),
    }
    kind: type[SkipResets] = type("Between", (CountsBefore,), {"between": staticmethod(changes[what])})
    assert catch_up(settings, kind.configure(settings.migration("skip_resets"))).events == 1
    assert not completed()


def test_finalize_waits_for_producer_and_runs_until_complete(
    feed: Feed,
    connection: psycopg.Connection[Any],
    settings: Settings,
    positions: Positions,
    completed: Callable[[], bool],
) -> None:
    fill(connection, {1: TOO_MANY_TAGS, 2: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    positions.snapshot(done=False)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(finalizer(settings).run)
        until(lambda: written(connection) == [1], "the first row is reset")
        assert not working.done()
        feed.snapshot({2: TOO_MANY_TAGS})
        positions.snapshot(done=True)
        assert working.result(PATIENCE).applied == 2
    assert completed()


@pytest.mark.long
def test_finalize_reports_remaining_rows_after_a_second_count(
    feed: Feed,
    connection: psycopg.Connection[Any],
    settings: Settings,
    positions: Positions,
    completed: Callable[[], bool],
) -> None:
    fill(connection, {1: TOO_MANY_TAGS, 2: TOO_MANY_TAGS})
    positions.snapshot(done=True)
    positions.confirmed(Lsn(1))
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(finalizer(settings).run)
        # Its first count finds both rows; the event of one arrives later, when the producer is past the count.
        feed.snapshot({1: TOO_MANY_TAGS})
        until(lambda: written(connection) == [1], "the first row is reset")
        row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        positions.confirmed(Lsn(parse_lsn(row[0]) + (1 << 40)))
        with pytest.raises(RowsLeft, match="1 rows are left to change"):
            working.result(PATIENCE)
    assert not completed()
