from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from consumers.migrations.skip_resets import SkipResets
from consumers.operations.dry_run import dry_run
from consumers.testing.waiting import PATIENCE
from infra.kafka import clients
from infra.settings.model import Settings
from schemas.errors import UsageError
from schemas.topics import group_name
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, Feed, fill, written

pytestmark = pytest.mark.stack


def test_dry_run_counts_and_writes_nothing(feed: Feed, connection: psycopg.Connection[Any], settings: Settings) -> None:
    rows = {key: TOO_MANY_TAGS if key % 4 == 0 else DEFAULT for key in range(1_000)}
    fill(connection, rows)
    feed.snapshot(rows)
    feed.send([(b"x", b"nonsense")])
    migration = SkipResets.configure(settings.migration("skip_resets"))

    outcome = dry_run(settings, migration, "main", stopping=threading.Event())

    assert (outcome.events, outcome.changes) == (1_001, 250)
    assert outcome.skipped.total() == 750
    assert outcome.dead_letters.total() == 1
    assert written(connection) == []
    assert connection.execute("SELECT to_regnamespace('headrace')").fetchone() == (None,)
    admin = clients.admin(settings.kafka)
    topics = admin.list_topics(timeout=PATIENCE).topics
    assert not any("dead_letters" in topic for topic in topics if settings.prefix in topic)
    groups = [found.group_id for found in admin.list_consumer_groups().result(PATIENCE).valid]
    assert not any(group.startswith(group_name(settings.prefix, "skip_resets")) for group in groups)


def test_missing_topic_is_reported(settings: Settings) -> None:
    migration = SkipResets.configure(settings.migration("skip_resets"))
    with pytest.raises(UsageError, match=r"gitlab_main.container_repositories does not exist yet"):
        dry_run(settings, migration, "main", stopping=threading.Event())
