from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions

from consumers.group import group_name
from consumers.group import members as group_members
from consumers.migrations.skip_resets import SkipResets
from consumers.replay import MembersAlive, replay
from infra import kafka
from infra.settings import Settings
from tests.consumers.conftest import Member
from tests.consumers.repositories import TOO_MANY_TAGS, Feed, fill, written

pytestmark = pytest.mark.stack


def committed(settings: Settings) -> dict[int, int]:
    """Return the group's offsets as Kafka has them."""
    group = group_name(settings.prefix, "skip_resets")
    admin = kafka.admin(settings.kafka)
    futures = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
    return {found.partition: found.offset for found in futures[group].result(30).topic_partitions}


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
