"""A migration is complete once its input was read to the snapshot's end and the database counts nothing left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from consumers.migrations.skip_resets import SkipResets
from consumers.replay import replay
from consumers.runtime import Runtime
from consumers.status import gather
from consumers.totals import Totals
from consumers.verify import RowsLeft
from infra import kafka, topics
from infra.positions import SnapshotState, StreamState, record_key
from infra.settings import MigrationSettings, Settings
from schemas.positions import Lsn, parse_lsn
from schemas.topics import positions_topic
from tests.consumers.repositories import TOO_MANY_TAGS, Feed, fill, written
from tests.consumers.services import PATIENCE

pytestmark = pytest.mark.stack

CatchUp = Callable[..., Totals]
TABLE = "public.container_repositories"


class Positions:
    """Says what a producer would say of itself."""

    def __init__(self, settings: Settings, feed: Feed) -> None:
        self._topic = positions_topic(settings.prefix)
        topics.ensure_topic(settings.kafka, self._topic, partitions=1)
        self._producer = kafka.producer(settings.kafka)
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


def finalizer(settings: Settings) -> Runtime:
    work = SkipResets.configure(settings.migration("skip_resets"))
    return Runtime(settings, work, "main", stopping=threading.Event(), until_complete=True)


def test_it_is_complete_when_the_snapshots_end_is_passed_and_nothing_is_left(
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
    assert not completed(), "no producer has said anything"
    positions.snapshot(done=False)
    catch_up()
    assert not completed(), "the snapshot is not done"
    positions.snapshot(done=True)
    catch_up()
    assert not completed(), "row 2 is left"
    feed.snapshot({2: TOO_MANY_TAGS})
    assert catch_up().applied == 1
    assert completed()
    (found,) = [one for one in gather(settings)["migrations"] if one["name"] == "skip_resets"]
    assert found["state"] == "complete"


def test_later_starts_return_at_once_until_a_replay(
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
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    assert catch_up().events == 0
    going_on = {"skip_resets": MigrationSettings(continuous=True)}
    assert catch_up(settings.model_copy(update={"migrations": going_on})).applied == 1

    replay(settings, SkipResets, "main")
    assert not completed()
    assert catch_up().events == 1
    assert completed()


def test_finalize_waits_for_the_producer_and_works_until_it_is_complete(
    feed: Feed,
    connection: psycopg.Connection[Any],
    settings: Settings,
    positions: Positions,
    eventually: Callable[..., None],
    completed: Callable[[], bool],
) -> None:
    fill(connection, {1: TOO_MANY_TAGS, 2: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    positions.snapshot(done=False)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(finalizer(settings).run)
        eventually(lambda: written(connection) == [1], "the first row is reset")
        assert not working.done()
        feed.snapshot({2: TOO_MANY_TAGS})
        positions.snapshot(done=True)
        assert working.result(PATIENCE).applied == 2
    assert completed()


def test_finalize_says_what_is_left_once_every_event_has_had_its_time(
    feed: Feed,
    connection: psycopg.Connection[Any],
    settings: Settings,
    positions: Positions,
    eventually: Callable[..., None],
    completed: Callable[[], bool],
) -> None:
    fill(connection, {1: TOO_MANY_TAGS, 2: TOO_MANY_TAGS})
    positions.snapshot(done=True)
    positions.confirmed(Lsn(1))
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(finalizer(settings).run)
        # Its first count finds both; the events of one of them come later, and then the producer is past the count.
        feed.snapshot({1: TOO_MANY_TAGS})
        eventually(lambda: written(connection) == [1], "the first row is reset")
        row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        positions.confirmed(Lsn(parse_lsn(row[0]) + (1 << 40)))
        with pytest.raises(RowsLeft, match="1 rows are left to change"):
            working.result(PATIENCE)
    assert not completed()
