from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from consumers.ledger.progress import member_name
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.pauses import set_paused
from consumers.operations.status import gather
from consumers.testing.waiting import until
from infra.postgres.control import ensure_control_schema
from infra.settings.model import Settings
from tests.conftest import Database
from tests.consumers.conftest import Member
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, Feed, fill
from tests.consumers.known_migrations import known_are
from tests.consumers.operations.test_catalog import OncePerDatabase

pytestmark = pytest.mark.stack


def skip_resets(settings: Settings) -> dict[str, Any]:
    document = json.loads(json.dumps(gather(settings)))
    (found,) = [one for one in document["migrations"] if one["name"] == "skip_resets"]
    return dict(found)


def test_status_document_has_the_documented_fields(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], settings: Settings
) -> None:
    rows = {key: TOO_MANY_TAGS if key < 10 else DEFAULT for key in range(100)}
    fill(connection, rows)
    empty = skip_resets(settings)
    assert (len(empty["partitions"]), empty["eta_seconds"]) == (4, None), "the topic is there, and has nothing yet"
    feed.snapshot(rows)
    before = skip_resets(settings)
    assert (before["state"], before["run"], before["remaining"], before["eta_seconds"]) == ("waiting", 0, 10, None)

    catch_up()

    found = skip_resets(settings)
    partitions = found.pop("partitions")
    assert sum(partition["end_offset"] for partition in partitions) >= 100
    fields = {"topic", "partition", "offset", "end_offset", "consumer"}
    assert all(set(partition) == fields for partition in partitions)
    assert all(partition["consumer"] == member_name() for partition in partitions)
    assert all(partition["offset"] == partition["end_offset"] for partition in partitions)
    assert found == {
        "name": "skip_resets",
        "gitlab_schema": "gitlab_main",
        "database": "main",
        "run": 1,
        "state": "caught_up",
        "paused": False,
        "complete": False,
        "applied": 10,
        "skipped": 90,
        "skip_reasons": {"no import_skipped in it": 90},
        "dead_letters": 0,
        "given_up": 0,
        "reported": 0,
        "reached": {},
        "remaining": 0,
        "remaining_estimated": False,
        "rate": 0.0,
        "eta_seconds": 0.0,
        "members": [],
        "throttled_by": None,
        "failed": None,
        "max_rate": 0.0,
        "transaction_ms": 200,
    }


def test_status_reports_pause_and_consumers(
    feed: Feed,
    connection: psycopg.Connection[Any],
    members: Callable[..., Member],
    settings: Settings,
) -> None:
    set_paused(settings, SkipResets, "main", True)
    member = members()
    until(lambda: skip_resets(settings)["members"], "it is a member")
    found = skip_resets(settings)
    assert found["state"] == "paused"
    assert found["members"][0].endswith(f":{member.pid}")
    set_paused(settings, SkipResets, "main", False)
    until(lambda: skip_resets(settings)["state"] == "caught_up", "it continues")


def test_status_reports_unreachable_database_and_shows_the_others(settings: Settings, feed: Feed) -> None:
    down = settings.model_copy(
        update={
            "databases": Settings.model_validate(
                {"databases": {"main": {"dsn": "postgresql://127.0.0.1:1/x", "gitlab_schemas": ["gitlab_main"]}}}
            ).databases
        }
    )
    found = skip_resets(down)
    assert "does not answer" in found["error"]
    assert len(found["partitions"]) == feed.partitions


def test_status_reports_gitlab_schema_with_two_owners_and_shows_the_others(
    settings: Settings, new_databases: Callable[[str | None], Database]
) -> None:
    databases = {}
    for name in ("main", "other"):
        database = new_databases(None)
        ensure_control_schema(database.connect(), name, ["gitlab_main"])
        databases[name] = {"dsn": database.dsn, "gitlab_schemas": ["gitlab_main"]}
    both = Settings.model_validate(
        {**settings.model_dump(include={"prefix", "kafka"}), "databases": databases, "migrations": {"skip_resets": {}}}
    )
    found = skip_resets(both)
    assert found["state"] == "waiting"
    assert found["error"].startswith("main (epoch 1) and other (epoch 1) both claim to own gitlab_main;")


def test_pause_of_complete_run_is_shown(feed: Feed, connection: psycopg.Connection[Any], settings: Settings) -> None:
    set_paused(settings, SkipResets, "main", True)
    connection.execute("UPDATE headrace.migrations SET completed_at = now()")
    found = skip_resets(settings)
    assert (found["state"], found["paused"], found["complete"]) == ("paused", True, True)
    set_paused(settings, SkipResets, "main", False)
    found = skip_resets(settings)
    assert (found["state"], found["paused"], found["complete"]) == ("complete", False, True)


@pytest.mark.parametrize("section", [{}, {"sub_batch_size": 50}, {"database": "ci"}])
def test_migration_per_database_is_shown_once_per_database(
    settings: Settings,
    new_databases: Callable[[str | None], Database],
    monkeypatch: pytest.MonkeyPatch,
    section: dict[str, Any],
) -> None:
    known_are(monkeypatch, {"everywhere": OncePerDatabase, "skip_resets": SkipResets})
    both = Settings.model_validate(
        {
            **settings.model_dump(include={"prefix", "kafka"}),
            "databases": {
                "main": {"dsn": new_databases(None).dsn, "gitlab_schemas": ["gitlab_main", "gitlab_shared"]},
                "ci": {"dsn": new_databases(None).dsn, "gitlab_schemas": ["gitlab_ci", "gitlab_shared"]},
            },
            "migrations": {"everywhere": section} if section else {},
        }
    )
    set_paused(both, OncePerDatabase, "ci", True)
    found = {(one["name"], one["database"]): one["state"] for one in gather(both)["migrations"]}
    everywhere = {("everywhere", "main"): "waiting", ("everywhere", "ci"): "paused"}
    if "database" in section:
        del everywhere["everywhere", "main"]
    assert found == {**everywhere, ("skip_resets", "main"): "waiting"}
