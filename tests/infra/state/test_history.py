"""Records of actions: one row each, which no role changes afterwards, from all databases of the settings."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from infra.postgres.control import ensure_control_schema
from infra.settings.model import Settings
from infra.state import history
from infra.state.history import (
    REASON_CHARACTERS,
    Actor,
    OperatorAction,
    Via,
    operator,
    read_history,
    record_action,
    whole_history,
)
from schemas.errors import DatabaseUnavailable, UsageError
from tests.conftest import Database

ALICE = Actor("alice@here", "see\n  CHG-7")


@pytest.fixture
def connection(database: Database) -> psycopg.Connection:
    opened = database.connect()
    ensure_control_schema(opened, "main", ["gitlab_main"])
    return opened


@pytest.mark.stack
def test_action_is_recorded_with_its_transaction_by_the_servers_clock(connection: psycopg.Connection) -> None:
    def now() -> datetime:
        row = connection.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        return datetime.fromisoformat(str(row[0]))

    before = now()
    with connection.transaction():
        record_action(connection, OperatorAction.RETRY, ["a"], ALICE, event="main/t/0/1")
        record_action(connection, OperatorAction.SWITCHOVER, ["b", "c"], Actor("ops", via=Via.CONSOLE))
    with connection.transaction(force_rollback=True):
        record_action(connection, OperatorAction.PAUSE, ["a"], ALICE)
    first, *others = read_history(connection, database="main", limit=10)
    assert (first.database, first.action, first.subject, first.actor, first.via, first.reason, dict(first.details)) == (
        "main", "retry", "a", "alice@here", "command", "see CHG-7", {"event": "main/t/0/1"}
    )  # fmt: skip
    assert before < first.at < others[0].at < now()
    assert first.role == connection.info.user
    assert {(each.subject, each.via, each.reason) for each in others} == {
        ("b", "console", None),
        ("c", "console", None),
    }
    assert len({each.request for each in others}) == 1 != len({each.request for each in (first, *others)})


@pytest.mark.stack
def test_history_is_limited_to_the_newest_a_subject_and_a_time(connection: psycopg.Connection) -> None:
    for number in range(3):
        record_action(connection, OperatorAction.PAUSE, ["a", "b"], ALICE, number=number)
    entries = read_history(connection, database="main", subjects=["a"], limit=2)
    assert [(each.subject, each.details["number"]) for each in entries] == [("a", 1), ("a", 2)]
    since = read_history(connection, database="main", since=entries[1].at, limit=10)
    assert [each.details["number"] for each in since if each.subject == "a"] == [2]


@pytest.mark.stack
def test_not_even_the_owner_of_the_table_changes_what_is_recorded(database: Database) -> None:
    superuser = database.connect()
    role = sql.Identifier(f"owner of {database.name}")
    superuser.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(role))
    superuser.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(sql.Identifier(database.name), role))
    try:
        dsn = make_conninfo(database.dsn, user=f"owner of {database.name}", password="x")
        with psycopg.connect(dsn, autocommit=True) as owner:
            ensure_control_schema(owner, "main", ["gitlab_main"])
            record_action(owner, OperatorAction.PAUSE, ["a"], ALICE)
            for statement in (b"UPDATE headrace.history SET actor = 'bob'", b"DELETE FROM headrace.history"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    owner.execute(statement)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                owner.execute("TRUNCATE headrace.history")
            assert [each.actor for each in read_history(owner, limit=9)] == ["alice@here"]
    finally:
        superuser.execute(sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(role))


@pytest.mark.stack
def test_table_of_an_older_headrace_is_missing_until_a_service_starts(connection: psycopg.Connection) -> None:
    connection.execute("DROP TABLE headrace.history")
    with capture_logs() as lines:
        record_action(connection, OperatorAction.SWITCHOVER, ["a"], ALICE)
    assert [(each["event"], each["action"], each["actor"]) for each in lines] == [
        ("action not recorded", "switchover", "alice@here")
    ]
    assert read_history(connection, database="main", limit=9) == []
    ensure_control_schema(connection, "main", ["gitlab_main"])
    record_action(connection, OperatorAction.SWITCHOVER, ["a"], ALICE)
    assert len(read_history(connection, database="main", limit=9)) == 1


@pytest.mark.stack
def test_whole_history_has_a_copys_actions_once_and_names_databases_that_do_not_answer(
    new_databases: Callable[[str | None], Database], tmp_path: Path
) -> None:
    main = new_databases(None)
    with psycopg.connect(main.dsn, autocommit=True) as opened:
        ensure_control_schema(opened, "main", ["gitlab_main"])
        record_action(opened, OperatorAction.PAUSE, ["a"], ALICE)
    copy = new_databases(main.name)
    record_action(copy.connect(), OperatorAction.RESUME, ["a"], ALICE)
    record_action(main.connect(), OperatorAction.REPLAY, ["a"], ALICE)
    away = {"dsn": f"postgresql://u@{tmp_path}/d"}
    settings = Settings.model_validate({"databases": {"main": {"dsn": main.dsn}, "ci": {"dsn": copy.dsn}, "x": away}})
    found = whole_history(settings, limit=10)
    assert [(each.action, each.database) for each in found.entries] == [
        ("pause", "main"), ("resume", "ci"), ("replay", "main")
    ]  # fmt: skip
    assert [each.action for each in whole_history(settings, limit=1).entries] == ["replay"]
    assert list(found.missing) == ["x"]
    with pytest.raises(DatabaseUnavailable):
        whole_history(settings.model_copy(update={"databases": {"x": settings.databases["x"]}}), limit=10)


@pytest.mark.parametrize(
    ("reason", "words"),
    [("a\0b", "zero character"), ("\udcff", "not valid UTF-8"), ("x" * (REASON_CHARACTERS + 1), "1,001 characters")],
)
def test_reason_that_cannot_be_stored_is_refused(reason: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        operator(reason)


def test_operator_is_the_user_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "host")
    monkeypatch.setattr(history, "_user", lambda: "root")
    assert (operator().name, operator(" ").reason) == ("root@host", None)
    monkeypatch.setenv("SUDO_USER", "alice")
    assert operator("why").name == "root@host (sudo by alice)"
    monkeypatch.setenv("SUDO_USER", "a\nb")
    assert operator().name == "root@host"
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_001)
    assert operator().name.startswith("uid 4000000001@")


def test_entry_as_json_has_its_time_in_utc() -> None:
    made = history.HistoryEntry(
        "main", ALICE.request, datetime.fromisoformat("2026-01-31T13:00:00+01:00"), "pause", "a", "alice", "command",
        None, {}, "r", ALICE.request,
    )  # fmt: skip
    assert made.document()["at"] == datetime(2026, 1, 31, 12, tzinfo=UTC).isoformat()
