from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions

from consumers.migrations.skip_resets import SkipResets
from consumers.operations.group_admin import MembersAlive
from consumers.operations.group_admin import members as group_members
from consumers.operations.replay import replay
from consumers.operations.start_offsets import SinceLsn, SinceTime, parse_start
from consumers.planning.key_selection import parse_selection
from consumers.testing.waiting import PATIENCE, until
from infra.kafka import clients
from infra.settings.model import Settings
from schemas.errors import UsageError
from schemas.positions import Lsn
from schemas.topics import group_name
from tests.consumers.conftest import Member
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, Feed, fill, written

pytestmark = pytest.mark.stack


def committed(settings: Settings) -> dict[int, int]:
    """Return the group's offsets in Kafka."""
    group = group_name(settings.prefix, "skip_resets")
    admin = clients.admin(settings.kafka)
    futures = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
    return {found.partition: found.offset for found in futures[group].result(PATIENCE).topic_partitions}


def test_new_run_starts_ledger_and_offsets_at_the_beginning(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], settings: Settings
) -> None:
    rows = dict.fromkeys(range(100), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    catch_up()
    assert sum(committed(settings).values()) >= 100

    begun = replay(settings, SkipResets, "main")

    assert (begun.run, set(begun.starts.values())) == (2, {0})
    assert set(committed(settings).values()) == {0}
    found = connection.execute("SELECT next_offset FROM headrace.progress WHERE run = 2").fetchall()
    assert found == [(0,)] * feed.partitions
    totals = catch_up()
    assert (totals.events, totals.applied) == (100, 0)
    assert len(written(connection)) == 100


def test_replay_is_refused_while_consumers_are_running(
    feed: Feed,
    connection: psycopg.Connection[Any],
    members: Callable[..., Member],
    settings: Settings,
) -> None:
    member = members()
    group = group_name(settings.prefix, "skip_resets")
    until(lambda: group_members(settings.kafka, group), "it is a member")
    with pytest.raises(MembersAlive, match=rf"running consumers: .*:{member.pid}") as refused:
        replay(settings, SkipResets, "main")
    assert refused.value.exit_code == 3
    assert connection.execute("SELECT max(run) FROM headrace.migrations").fetchone() == (1,)


@pytest.mark.long
def test_replay_from_lsn_starts_at_first_event_at_or_after_it(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], settings: Settings
) -> None:
    feed.snapshot(dict.fromkeys(range(100), DEFAULT))
    # Between them are tombstones, garbage and transaction markers, which have no position.
    feed.send([*feed.delete(3), (b"x", b"garbage"), (b"y", b"garbage")])
    wanted = feed.lsn + 1
    fill(connection, dict.fromkeys(range(100), TOO_MANY_TAGS))
    for key in range(40, 100):
        feed.send([feed.upsert(key, *TOO_MANY_TAGS)])

    # An unreadable record has no position: if it is right before the first event, the start is at it.
    for lsn, events in ((wanted, 63), (wanted + 30 * 8, 30), (feed.lsn + 1, 0)):
        replay(settings, SkipResets, "main", start=SinceLsn(Lsn(lsn)))
        totals = catch_up()
        assert totals.events == events
    assert sorted(written(connection)) == list(range(40, 100))
    replay(settings, SkipResets, "main", start=SinceLsn(Lsn(0)))
    assert catch_up().events == 164


def test_replay_from_time_starts_at_first_event_produced_since(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], settings: Settings
) -> None:
    moments = []
    for _ in range(3):
        moments.append(next_millisecond())
        feed.send(feed.upsert(key, *DEFAULT) for key in range(20))
    moments.append(next_millisecond())
    for moment, events in zip(moments, (60, 40, 20, 0), strict=True):
        replay(settings, SkipResets, "main", start=SinceTime(moment))
        assert catch_up().events == events


def next_millisecond() -> datetime:
    """Return a time after all events produced so far and not after later ones."""
    before = time.time_ns() // 1_000_000
    while (now := time.time_ns() // 1_000_000) <= before + 1:
        pass
    return datetime.fromtimestamp(now / 1000, UTC)


def test_key_selection_limits_the_events_decided_on(
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: Callable[..., Any],
    settings: Settings,
    ledger: Callable[[], dict[str, int]],
) -> None:
    rows = dict.fromkeys(range(100), TOO_MANY_TAGS)
    feed.snapshot(rows)
    catch_up()
    fill(connection, rows)

    begun = replay(settings, SkipResets, "main", selection=parse_selection(["id=05, 7"], ["+7", "9"]))

    assert begun.selection == {"id": ["5", "7", "7", "9"]}
    catch_up()
    assert sorted(written(connection)) == [5, 7, 9]
    assert (ledger()["applied"], ledger()["skipped"]) == (3, 97)
    reasons = connection.execute(
        "SELECT sum((skip_reasons ->> 'not selected')::int) FROM headrace.progress WHERE run = 2"
    )
    assert reasons.fetchone() == (97,)
    replay(settings, SkipResets, "main")
    catch_up()
    assert len(written(connection)) == 100


def test_selection_of_unknown_key_column_is_refused(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], settings: Settings
) -> None:
    with pytest.raises(UsageError, match="no events yet"):
        replay(settings, SkipResets, "main", selection={"id": ["1"]})
    feed.snapshot({1: DEFAULT})
    catch_up()
    with pytest.raises(UsageError, match="no key column name; key columns: id"):
        replay(settings, SkipResets, "main", selection={"name": ["1"]})
    with pytest.raises(
        UsageError, match=r'key column id: "1\.5" is not an integer in the range of its type; for example'
    ):
        replay(settings, SkipResets, "main", selection={"id": ["1.5"]})
    assert connection.execute("SELECT max(run) FROM headrace.migrations").fetchone() == (1,)


@pytest.mark.parametrize("wrong", ["yesterday", "timestamp:noon", "lsn:12", "beginning:1"])
def test_invalid_start_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="use beginning, timestamp:"):
        parse_start(wrong)


def test_time_without_zone_is_utc() -> None:
    assert parse_start("timestamp:2026-01-31T12:00:00") == SinceTime(datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert parse_start("timestamp:2026-01-31T13:00:00+01:00") == SinceTime(datetime(2026, 1, 31, 12, tzinfo=UTC))
