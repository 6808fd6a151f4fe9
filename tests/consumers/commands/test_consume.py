"""Runs the commands of a migration as the command line does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

import headrace
from consumers.contract.decisions import TOMBSTONE
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.pauses import set_paused
from infra.service import log
from infra.settings.model import Settings
from schemas.errors import HeadraceError
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, Feed, fill, written
from tests.documents import hold

pytestmark = pytest.mark.stack

Run = Callable[..., Result]


@pytest.fixture
def run(config: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs a command with the test's settings; the result has any exception."""
    # The runner closes its standard error after each command, and the log of this process would keep using it.
    monkeypatch.setattr(log, "configure", lambda _settings: None)

    def invoke(*arguments: str, answer: str | None = None) -> Result:
        ended = CliRunner().invoke(headrace.app, [*arguments, "--config", str(config)], input=answer)
        hold(arguments, ended.stdout)
        return ended

    return invoke


def refused(result: Result) -> tuple[int, str]:
    """Return the exit code and the line of an error."""
    assert isinstance(result.exception, HeadraceError), result.output
    return result.exception.exit_code, str(result.exception)


@pytest.fixture
def poisoned(feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any]) -> None:
    """Row 1 cannot be reset and becomes a dead letter, as does an unreadable event."""
    connection.execute("ALTER TABLE container_repositories ADD CONSTRAINT poison CHECK (migration_state <> 'default')")
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    feed.send([(b"k", b"nonsense")])
    catch_up()


def test_dead_letters_are_listed_retried_and_discarded(
    run: Run, poisoned: None, connection: psycopg.Connection[Any]
) -> None:
    listed = json.loads(run("dead-letters", "list", "skip_resets", "--json").output)
    assert listed["migration"] == "skip_resets"
    assert all(
        each.keys() == {"event", "database", "topic", "partition", "offset", "reason", "run", "recorded_at", "key"}
        for each in listed["dead_letters"]
    )
    reasons = {each["reason"].split()[0]: each["event"] for each in listed["dead_letters"]}
    assert len(reasons) == 2
    assert {"id": 1} in [each["key"] for each in listed["dead_letters"]]
    assert len(run("dead-letters", "list", "skip_resets").output.splitlines()) == 2

    code, line = refused(run("dead-letters", "retry", "skip_resets"))
    assert (code, "2 of skip_resets's events still cannot be applied" in line) == (1, True)
    connection.execute("ALTER TABLE container_repositories DROP CONSTRAINT poison")
    assert "1 applied" in run("dead-letters", "retry", "skip_resets", reasons["23514"]).output
    assert written(connection) == [1]

    assert run("dead-letters", "discard", "skip_resets", "--all", answer="n\n").exit_code == 1
    left = json.loads(run("dead-letters", "list", "skip_resets", "--json").output)["dead_letters"]
    assert [each["event"] for each in left] == [name for reason, name in reasons.items() if reason != "23514"]
    done = run("dead-letters", "discard", "skip_resets", "--all", "--yes", "--json")
    assert json.loads(done.output)["discarded"] == 1
    assert "no dead letters" in run("dead-letters", "list", "skip_resets").output


@pytest.mark.parametrize("arguments", [[], ["t/0/1", "--all"]])
def test_discard_without_selection_is_refused(run: Run, arguments: list[str]) -> None:
    code, line = refused(run("dead-letters", "discard", "skip_resets", "--yes", *arguments))
    assert (code, "name the events to discard, or give --all" in line) == (2, True)


def test_replay_starts_at_requested_position(run: Run, feed: Feed, catch_up: Callable[..., Any]) -> None:
    feed.snapshot(dict.fromkeys(range(10), DEFAULT))
    catch_up()
    begun = json.loads(
        run("replay", "skip_resets", "--from", "lsn:0/1", "--keys", "4", "--where", "id=5,6", "--json").output
    )
    assert (begun["run"], begun["partitions"], begun["selection"]) == (2, 4, {"id": ["5", "6", "4"]})
    assert {start["offset"] for start in begun["starts"]} == {0}
    assert refused(run("replay", "skip_resets", "--from", "noon"))[0] == 2
    assert refused(run("replay", "skip_resets", "--where", "id"))[0] == 2


def test_paused_migration_is_not_finalized(run: Run, settings: Settings, feed: Feed) -> None:
    set_paused(settings, SkipResets, "main", True)
    code, line = refused(run("finalize", "skip_resets"))
    assert (code, "skip_resets is paused; resume it with `headrace resume skip_resets`" in line) == (3, True)


def test_verify_reports_remaining_rows(run: Run, connection: psycopg.Connection[Any]) -> None:
    fill(connection, {1: TOO_MANY_TAGS, 2: DEFAULT})
    code, line = refused(run("verify", "skip_resets"))
    assert (code, "1 rows are left to change in main" in line) == (1, True)
    assert json.loads(run("verify", "skip_resets", "--json").output)["remaining"] == 1
    assert refused(run("verify", "public.nothing", "--rows"))[0] == 2


def test_a_dry_run_counts_and_writes_nothing(run: Run, feed: Feed, connection: psycopg.Connection[Any]) -> None:
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS, 2: DEFAULT})
    feed.send(feed.delete(2))
    found = json.loads(run("consume", "skip_resets", "--dry-run", "--json").output)
    assert (found["events"], found["changes"], found["remaining"]) == (4, 1, 1)
    assert found["skipped"][TOMBSTONE] == 1
    assert written(connection) == []


def test_pause_and_resume_print_the_next_command(run: Run, connection: psycopg.Connection[Any]) -> None:
    assert "resume it with: headrace resume skip_resets" in run("pause", "skip_resets").output
    assert connection.execute("SELECT paused FROM headrace.migrations").fetchone() == (True,)
    assert "skip_resets is resumed" in run("resume", "skip_resets").output
    assert connection.execute("SELECT paused FROM headrace.migrations").fetchone() == (False,)
