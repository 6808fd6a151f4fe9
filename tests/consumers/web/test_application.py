"""The API on real servers: what it shows is what the commands show, and what it changes is in the history."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from consumers.migrations.skip_resets import SkipResets
from consumers.operations.status import gather
from consumers.testing.waiting import until
from consumers.web import listings
from consumers.web.documents import DeadLetter
from infra.postgres.control import ensure_control_schema
from infra.settings.model import Settings
from infra.state.history import read_history
from tests import document_models as models
from tests.conftest import Database
from tests.consumers.conftest import Member
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, Feed, fill, written
from tests.consumers.web.console import TOKENS, Client, running
from tests.consumers.web.statements import counting

pytestmark = pytest.mark.stack

CatchUp = Callable[..., Any]


@pytest.fixture
def poisoned(feed: Feed, connection: psycopg.Connection[Any], catch_up: CatchUp) -> None:
    """Row 1 cannot be reset and becomes a dead letter, as does an unreadable event."""
    connection.execute("ALTER TABLE container_repositories ADD CONSTRAINT poison CHECK (migration_state <> 'default')")
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    feed.send([(b"k", b"nonsense")])
    catch_up()


def test_snapshot_has_the_fields_of_the_status(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: CatchUp, settings: Settings, console: Client
) -> None:
    rows = {key: TOO_MANY_TAGS if key < 10 else DEFAULT for key in range(100)}
    fill(connection, rows)
    feed.snapshot(rows)
    catch_up()
    until(lambda: console.migration()["state"] == "caught_up", "it is read")
    snapshot = console.snapshot()
    assert snapshot["problems"] == []
    shown = {one["name"]: one for one in snapshot["migrations"]}
    for one in gather(settings)["migrations"]:
        mine = shown.pop(one["name"])
        assert mine.pop("verified") is None
        models.StatusOfMigration.model_validate({key: value for key, value in mine.items() if key != "error"})
        assert mine == {**one, "error": None, "remaining": None}
    assert shown == {}
    (topic,) = [each for each in snapshot["topics"] if each["name"] == feed.topic]
    assert topic["events"] >= 100


def test_pause_and_resume_are_followed_by_consumers_and_recorded(
    feed: Feed, connection: psycopg.Connection[Any], members: Callable[..., Member], console: Client
) -> None:
    members()
    until(lambda: console.migration()["state"] == "caught_up", "it is at work")
    paused = console.post("/api/migrations/skip_resets/pause", {"reason": "  vacuum\nruns "})
    assert paused.document == {"migration": "skip_resets", "database": "main", "paused": True}
    fill(connection, {5: TOO_MANY_TAGS})
    feed.snapshot({5: TOO_MANY_TAGS})
    until(lambda: any(each["end_offset"] for each in console.migration()["partitions"]), "there is an event")
    found = console.migration()
    assert found["state"] == "paused"
    assert len(found["members"]) == 1
    assert written(connection) == []
    bob = Client(console.port, TOKENS["bob"])
    assert bob.post("/api/migrations/skip_resets/resume", {}).document["paused"] is False
    until(lambda: written(connection) == [5], "it continues")
    recorded = [(one.action, one.actor, one.via, one.reason) for one in read_history(connection)]
    assert recorded == [
        ("pause", "alice", "console", "vacuum runs"),
        ("resume", "bob", "console", None),
    ]
    shown = console.get("/api/history/main").document["actions"]
    assert [(one["action"], one["actor"]) for one in shown] == [("resume", "bob"), ("pause", "alice")]


def test_pace_is_obeyed_while_the_consumer_runs(
    feed: Feed, connection: psycopg.Connection[Any], members: Callable[..., Member], console: Client
) -> None:
    """At one row in a thousand seconds, and then without limit, none of which the consumer's settings say."""
    path = "/api/migrations/skip_resets/pace"
    members()
    until(lambda: console.migration()["state"] == "caught_up", "it is at work")
    slow = {"max_rate": 0.001, "transaction_ms": 50, "reason": "slowly"}
    assert console.post(path, slow).document == {
        "migration": "skip_resets", "database": "main", "max_rate": 0.001, "transaction_ms": 50,
    }  # fmt: skip
    until(lambda: console.migration()["max_rate"] == 0.001, "it is shown")
    rows = dict.fromkeys(range(2000), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    until(lambda: written(connection), "it begins")
    first = len(written(connection))
    until(lambda: console.migration()["applied"] >= 1, "it is shown")
    assert len(written(connection)) == first < 2000
    console.post(path, {"max_rate": 0, "transaction_ms": None})
    until(lambda: len(written(connection)) == 2000, "it is without limit at once")
    until(lambda: (console.migration()["max_rate"], console.migration()["transaction_ms"]) == (0, 200), "it is shown")
    (first_change, _) = read_history(connection)
    assert (first_change.action, first_change.reason) == ("pace", "slowly")
    assert first_change.details == {"max_rate": 0.001, "transaction_ms": 50}


def test_dead_letters_are_listed_retried_and_discarded(
    poisoned: None, connection: psycopg.Connection[Any], console: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change is listed at once, however long an unchanged list is kept."""
    monkeypatch.setattr(listings, "_FRESH_SECONDS", 1e9)
    path = "/api/migrations/skip_resets/dead-letters"
    listed = console.get(path).document
    assert listed["migration"] == "skip_resets"
    assert set(DeadLetter.model_fields) == set(models.DeadLetter.model_fields)
    names = {each["reason"].split()[0]: each["event"] for each in listed["dead_letters"]}
    assert len(names) == 2
    assert {"id": 1} in [each["key"] for each in listed["dead_letters"]]
    stays = console.post(f"{path}/retry", {"events": list(names.values())}).document
    assert set(stays["stays"]) == set(names.values())
    connection.execute("ALTER TABLE container_repositories DROP CONSTRAINT poison")
    retried = console.post(f"{path}/retry", {"events": [names["23514"]], "reason": "it was dropped"}).document
    assert (retried["applied"], retried["stays"]) == (1, {}), "no other was tried"
    assert written(connection) == [1]
    assert console.post(f"{path}/retry", {"events": []}).status == 422, "none is not all"
    assert console.post(f"{path}/retry", {"events": ["main/no/such/1"]}).status == 400
    (left,) = console.get(path).document["dead_letters"]
    assert console.post(f"{path}/discard", {"events": [left["event"]]}).document["discarded"] == 1
    assert console.get(path).document["dead_letters"] == []
    recorded = [(one.action, one.actor, one.reason, one.details["event"]) for one in read_history(connection)]
    assert recorded == [
        ("retry", "alice", "it was dropped", names["23514"]),
        ("discard", "alice", None, left["event"]),
    ]


def test_replay_starts_a_run_and_is_refused_while_consumers_are_alive(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: CatchUp, members: Callable[..., Member], console: Client
) -> None:
    catch_up()
    path = "/api/migrations/skip_resets/replay"
    assert console.post(path, {"reason": "again"}).document == {"migration": "skip_resets", "run": 2, "partitions": 4}
    assert console.post(path, {"start": "yesterday"}).status == 400
    members()
    until(lambda: console.migration()["members"], "it is in the group")
    refused = console.post(path, {})
    assert refused.status == 409
    assert "has running consumers" in refused.document["problem"]
    assert [(one.action, one.reason) for one in read_history(connection)] == [("replay", "again")]


def test_database_that_does_not_answer_is_named_and_the_other_is_shown(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: CatchUp, settings: Settings
) -> None:
    catch_up()
    other = {"dsn": "postgresql://u@127.0.0.1:1/d", "gitlab_schemas": ["gitlab_ci"]}
    databases = Settings.model_validate({"databases": {"ci": other}}).databases
    both = settings.model_copy(update={"databases": {**settings.databases, **databases}})
    with running(both) as console:
        until(lambda: console.migration()["state"] == "caught_up", "it is shown")
        (problem,) = console.snapshot()["problems"]
        assert problem.startswith("PostgreSQL at 127.0.0.1:1/d does not answer")


def test_owner_is_followed_after_a_switchover(
    settings: Settings, new_databases: Callable[[str | None], Database]
) -> None:
    """Both databases list the gitlab schema; their own rows say which one owns it, as `status` asks them."""
    made = {name: new_databases(None) for name in ("main", "other")}
    for name, database in made.items():
        ensure_control_schema(database.connect(), name, ["gitlab_main"] if name == "main" else [])
    other = made["other"].connect()
    other.execute("INSERT INTO headrace.schema_ownership (gitlab_schema, owner) VALUES ('gitlab_main', 'main')")
    section = {name: {"dsn": database.dsn, "gitlab_schemas": ["gitlab_main"]} for name, database in made.items()}
    both = Settings.model_validate({**settings.model_dump(include={"prefix", "kafka"}), "databases": section})
    with running(both) as console:
        assert console.migration()["database"] == "main"
        for database in made.values():
            database.connect().execute("UPDATE headrace.schema_ownership SET owner = 'other', epoch = 2")
        until(lambda: console.migration()["database"] == "other", "the new owner's records are shown")


def test_database_of_another_prefix_is_a_problem(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: CatchUp, settings: Settings
) -> None:
    catch_up()
    with running(settings.model_copy(update={"prefix": "another"})) as console:
        found = console.snapshot()
        assert any(f"is used with prefix {settings.prefix}" in each for each in found["problems"])


def test_unknown_names_are_not_found(console: Client) -> None:
    for what, body in (("pause", {}), ("replay", {}), ("pace", {}), ("dead-letters/retry", {"events": ["a"]})):
        assert console.post(f"/api/migrations/no_such/{what}", body).status == 404
    assert console.post("/api/migrations/skip_resets/pause", {"database": "ci"}).status == 400
    assert console.get("/api/history/no_such").status == 400
    assert console.get("/api/migrations/skip_resets/dead-letters?database=ci").status == 400


def test_history_is_read_once_a_second_for_all_viewers(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "_FRESH_SECONDS", 1e9)
    with counting(settings.databases["main"].dsn.get_secret_value()) as (dsn, counted):
        through = settings.databases["main"].model_copy(update={"dsn": SecretStr(dsn)})
        with running(settings.model_copy(update={"databases": {"main": through}})) as console:
            for _ in range(10):
                assert console.get("/api/history/main").document["actions"] == []
    assert counted.connections == 1


def test_requests_of_several_operators_at_once_are_all_done(
    feed: Feed, connection: psycopg.Connection[Any], console: Client
) -> None:
    answers: list[int] = []

    def send(paused: bool) -> None:
        answers.append(console.post(f"/api/migrations/skip_resets/{'pause' if paused else 'resume'}", {}).status)

    threads = [threading.Thread(target=send, args=(number % 2 == 0,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 8
    assert len(read_history(connection)) == 8
    assert SkipResets.name in [one["name"] for one in console.snapshot()["migrations"]]
