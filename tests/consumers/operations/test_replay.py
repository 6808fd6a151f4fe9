from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions

from consumers.migrations.skip_resets import SkipResets
from consumers.operations.group_admin import members as group_members
from consumers.operations.replay import MembersAlive, replay
from consumers.operations.start_offsets import SinceLsn, SinceTime, parse_start
from consumers.planning.key_selection import parse_selection
from infra.kafka import clients
from infra.settings.model import Settings
from schemas.errors import UsageError
from schemas.positions import Lsn
from schemas.topics import group_name
from tests.consumers.conftest import Member
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, Feed, fill, written
from tests.consumers.services import PATIENCE

pytestmark = pytest.mark.stack


def committed(settings: Settings) -> dict[int, int]:
    """Return the group's offsets as Kafka has them."""
    group = group_name(settings.prefix, "skip_resets")
    admin = clients.admin(settings.kafka)
    futures = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
    return {found.partition: found.offset for found in futures[group].result(PATIENCE).topic_partitions}


def test_a_new_run_starts_the_ledger_and_kafkas_offsets_at_the_beginning(
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


def test_it_is_refused_while_members_are_alive_and_names_them(
    feed: Feed,
    connection: psycopg.Connection[Any],
    members: Callable[..., Member],
    eventually: Callable[..., None],
    settings: Settings,
) -> None:
    member = members()
    group = group_name(settings.prefix, "skip_resets")
    eventually(lambda: group_members(settings.kafka, group), "it is a member")
    with pytest.raises(MembersAlive, match=rf"members alive: .*:{member.pid}") as refused:
        replay(settings, SkipResets, "main")
    assert refused.value.exit_code == 3
    assert connection.execute("SELECT max(run) FROM headrace.migrations").fetchone() == (1,)


def test_from_an_lsn_it_starts_at_the_first_event_of_that_position_or_later(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], settings: Settings
) -> None:
    feed.snapshot(dict.fromkeys(range(100), DEFAULT))
    # Tombstones, garbage and the marks of transactions lie between; none of them has a position.
    feed.send([*feed.delete(3), (b"x", b"garbage"), (b"y", b"garbage")])
    wanted = feed.lsn + 1
    fill(connection, dict.fromkeys(range(100), TOO_MANY_TAGS))
    for key in range(40, 100):
        feed.send([feed.upsert(key, *TOO_MANY_TAGS)])

    # What cannot be read has no position: where it stands right before the first event, the start is at it.
    for lsn, events in ((wanted, 63), (wanted + 30 * 8, 30), (feed.lsn + 1, 0)):
        replay(settings, SkipResets, "main", start=SinceLsn(Lsn(lsn)))
        totals = catch_up()
        assert totals.events == events
    assert sorted(written(connection)) == list(range(40, 100))
    replay(settings, SkipResets, "main", start=SinceLsn(Lsn(0)))
    assert catch_up().events == 164


def test_from_a_time_it_starts_at_what_was_produced_since(
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
    """Return a time that is later than all that was produced, and not later than what comes."""
    before = time.time_ns() // 1_000_000
    while (now := time.time_ns() // 1_000_000) <= before + 1:
        pass
    return datetime.fromtimestamp(now / 1000, UTC)


def test_a_selection_of_keys_limits_what_is_decided_on(
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


def test_a_selection_that_the_keys_do_not_have_is_refused(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], settings: Settings
) -> None:
    with pytest.raises(UsageError, match="no events yet"):
        replay(settings, SkipResets, "main", selection={"id": ["1"]})
    feed.snapshot({1: DEFAULT})
    catch_up()
    with pytest.raises(UsageError, match="no key column name; there: id"):
        replay(settings, SkipResets, "main", selection={"name": ["1"]})
    with pytest.raises(UsageError, match=r'key column id: "1\.5" is not a whole number of its size; for example'):
        replay(settings, SkipResets, "main", selection={"id": ["1.5"]})
    assert connection.execute("SELECT max(run) FROM headrace.migrations").fetchone() == (1,)


@pytest.mark.parametrize("wrong", ["yesterday", "timestamp:noon", "lsn:12", "beginning:1"])
def test_a_start_that_is_none(wrong: str) -> None:
    with pytest.raises(UsageError, match="use beginning, timestamp:"):
        parse_start(wrong)


def test_a_time_without_a_zone_is_utc() -> None:
    assert parse_start("timestamp:2026-01-31T12:00:00") == SinceTime(datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert parse_start("timestamp:2026-01-31T13:00:00+01:00") == SinceTime(datetime(2026, 1, 31, 12, tzinfo=UTC))
