"""A migration is throttled while its database is unhealthy; its consumers stay in the group and resume."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from consumers.migrations.skip_resets import SkipResets
from consumers.operations.group_admin import members as group_members
from consumers.operations.status import gather
from consumers.runtime.assembly import consumer_of
from consumers.testing.waiting import PATIENCE, until
from infra.settings.model import MigrationSettings, Settings
from schemas.topics import group_name
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill, written

pytestmark = pytest.mark.stack


def status(settings: Settings) -> dict[str, Any]:
    (found,) = [one for one in gather(settings)["migrations"] if one["name"] == "skip_resets"]
    return dict(found)


def test_consumer_is_throttled_with_reason_and_resumes(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings
) -> None:
    connection.execute("CREATE TABLE fever (reason text)")
    section = MigrationSettings(
        batch_size=500, sub_batch_size=10, health_seconds=0.1, health={"sql": "SELECT reason FROM public.fever"}
    )
    ill = settings.model_copy(update={"migrations": {"skip_resets": section}})
    rows = dict.fromkeys(range(2_000), TOO_MANY_TAGS)
    fill(connection, rows)
    stopping = threading.Event()
    member = consumer_of(ill, SkipResets.configure(section), "main", stopping=stopping)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(member.run)
        try:
            until(lambda: status(ill)["members"], "it is in the group")
            connection.execute("INSERT INTO fever VALUES ('it is hot')")
            until(lambda: status(ill)["throttled_by"] == "sql: it is hot", "it is throttled")
            feed.snapshot(rows)
            found = status(ill)
            assert found["state"] == "throttled"
            assert written(connection) == []
            assert len(group_members(ill.kafka, group_name(ill.prefix, "skip_resets"))) == 1
            connection.execute("DELETE FROM fever")
            until(lambda: len(written(connection)) >= 500, "it continues")
            connection.execute("INSERT INTO fever VALUES ('again')")
            until(
                lambda: status(ill)["throttled_by"] is not None or len(written(connection)) == 2_000, "throttled again"
            )
            connection.execute("DELETE FROM fever")
            until(lambda: len(written(connection)) == 2_000, "all are reset")
            until(lambda: status(ill)["throttled_by"] is None, "it is healthy")
        finally:
            stopping.set()
        assert working.result(PATIENCE).applied == 2_000
    assert connection.execute("SELECT count(*) FROM headrace.throttles").fetchone() == (0,)
    periods = connection.execute(
        "SELECT reason, since < until FROM headrace.throttle_periods ORDER BY since"
    ).fetchall()
    assert periods[0] == ("sql: it is hot", True)
