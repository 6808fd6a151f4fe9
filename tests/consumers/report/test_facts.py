"""Facts of a run on real servers: its counts, samples, periods, actions and dead letters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from consumers.dead_letters.settle import discard, read_dead_letters
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.pauses import set_paused
from consumers.operations.replay import replay
from consumers.report.facts import UnknownRun, gather_facts
from consumers.report.page import report_page, unknowns
from infra.settings.model import KafkaSettings, Settings
from infra.state.history import Actor
from schemas.errors import DatabaseUnavailable
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill
from tests.shells import Shell

pytestmark = pytest.mark.stack

ALICE = Actor("alice@here", "CHG-7")
FORBID = "ALTER TABLE container_repositories ADD CONSTRAINT poison CHECK (id <> 2 OR migration_state <> 'default')"


@pytest.fixture
def migration(settings: Settings) -> SkipResets:
    made = SkipResets.configure(settings.migration("skip_resets"))
    assert isinstance(made, SkipResets)
    return made


@pytest.fixture
def two_runs(
    settings: Settings,
    migration: SkipResets,
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: Callable[..., object],
) -> None:
    """A first run with a dead letter that was discarded, a pause, a throttled period, and a second run."""
    connection.execute(FORBID)
    rows = dict.fromkeys(range(1, 101), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    catch_up()
    set_paused(settings, SkipResets, "main", True, actor=ALICE)
    set_paused(settings, SkipResets, "main", False, actor=ALICE)
    discard(
        settings, migration, "main", read_dead_letters(settings, SkipResets, "main"), threading.Event(), actor=ALICE
    )
    connection.execute(
        "INSERT INTO headrace.throttle_periods VALUES ('skip_resets', 'here:1', 'sql: hot', now(), now())"
    )
    connection.execute("ALTER TABLE container_repositories DROP CONSTRAINT poison")
    replay(settings, SkipResets, "main", actor=ALICE)
    catch_up()


def test_facts_of_the_last_run_and_of_an_earlier_one(
    settings: Settings, migration: SkipResets, two_runs: None, connection: psycopg.Connection[Any]
) -> None:
    last = gather_facts(settings, migration, "main")
    assert (last.run, last.state, last.run_reason, last.remaining.exact) == (2, "caught_up", "replay", 0)
    assert (last.events, last.last.applied, last.last.skipped) == (100, 1, 99)
    assert (last.passed, last.partitions) == (last.end_sum, 4)
    assert last.skip_reasons == {"already up to date": 99}
    assert [each.action for each in last.actions] == ["replay"]
    assert (last.throttled, last.paused, last.open_dead_letters) == ([], [], [])
    assert last.samples[0].events > 0
    assert last.started is not None
    assert last.started < last.samples[0].at < last.now

    first = gather_facts(settings, migration, "main", 1)
    assert (first.run, first.state, first.remaining.rows, first.completed) == (1, "replaced", None, None)
    assert (first.events, first.last.applied, first.last.dead_letters) == (100, 99, 0)
    assert first.skip_reasons == {"discarded": 1}
    assert [each.action for each in first.actions] == ["pause", "resume", "discard"]
    assert [(each.who, each.reason) for each in first.paused] == [("alice@here", "CHG-7")]
    assert [each.reason for each in first.throttled] == ["sql: hot"]
    assert first.settled_dead_letters == 1
    assert first.ended == last.actions[0].at

    with pytest.raises(UnknownRun, match="skip_resets has no run 3: the last is 2"):
        gather_facts(settings, migration, "main", 3)
    page = report_page(first, ALICE)
    assert "sql: hot" in page


@pytest.mark.long
def test_report_needs_no_kafka_and_no_samples(
    settings: Settings,
    migration: SkipResets,
    two_runs: None,
    connection: psycopg.Connection[Any],
    closed_port: int,
) -> None:
    connection.execute("DROP TABLE headrace.samples, headrace.throttle_periods, headrace.history")
    away = settings.model_copy(update={"kafka": KafkaSettings(bootstrap_servers=f"127.0.0.1:{closed_port}")})
    facts = gather_facts(away, migration, "main")
    assert (facts.state, facts.passed, facts.events, facts.remaining.exact) == ("unknown", None, 100, 0)
    said = list(unknowns(facts))
    assert [each for each in said if each.startswith("How much the topics hold is not known")]
    assert "Headrace.samples is missing until a service of this version has started." in said
    assert "no sample was taken" in " ".join(said)
    assert "The state is not known" in report_page(facts, ALICE)
    database = settings.databases["main"].model_copy(
        update={"dsn": SecretStr(f"postgresql://u@127.0.0.1:{closed_port}/d")}
    )
    with pytest.raises(DatabaseUnavailable):
        gather_facts(away.model_copy(update={"databases": {"main": database}}), migration, "main")


def test_migration_that_never_ran_has_no_report(
    settings: Settings, migration: SkipResets, feed: Feed, connection: psycopg.Connection[Any]
) -> None:
    with pytest.raises(UnknownRun, match="skip_resets has never run in main"):
        gather_facts(settings, migration, "main")


@pytest.mark.long
def test_command_writes_the_file_and_names_it(two_runs: None, config: Path) -> None:
    shell = Shell(config.parent)
    ended = shell.run("report", "skip_resets", "--reason", "CHG-7 <b>")
    assert (ended.code, ended.out) == (0, "report of skip_resets, run 2: skip_resets-run-2.html\n")
    page = (config.parent / "skip_resets-run-2.html").read_text()
    assert "CHG-7 &lt;b&gt;" in page
    assert '"run": 1' in shell.run("report", "skip_resets", "--run", 1, "--output", "first.html", "--json").out
    assert shell.run("report", "skip_resets", "--output", "-").out.startswith("<!DOCTYPE html>\n<html lang=")
    error = shell.run("report", "skip_resets", "--output", "no/such/folder").error(2)
    assert "cannot write no/such/folder: No such file or directory" in error
    assert "both write to standard output" in shell.call("report", "skip_resets", "--output", "-", "--json").error(2)
