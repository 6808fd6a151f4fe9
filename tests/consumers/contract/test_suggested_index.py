"""An index is suggested if the guard is slow and has none; it is never created."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from typer.testing import CliRunner

from consumers.operations.check import advise
from infra.cli.advice import Advice
from infra.settings.model import Settings
from producers.commands.check_command import check_with
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, fill

pytestmark = pytest.mark.stack

NEVER, AT_ONCE = 600_000, 1
"""Limits in milliseconds: one that no count of these rows reaches, and one that every count does."""
STATEMENT = (
    'CREATE INDEX CONCURRENTLY ON "public"."container_repositories" ("migration_state", "migration_skipped_at", "id");'
)


@pytest.fixture
def rows(connection: psycopg.Connection[Any]) -> None:
    fill(connection, {key: DEFAULT if key % 40 else TOO_MANY_TAGS for key in range(1, 120_001)})
    connection.execute("VACUUM ANALYZE container_repositories")


def offered(settings: Settings, limit_ms: int) -> list[Advice]:
    """Return the suggested indexes, without other findings."""
    return [one for one in advise(settings, limit_ms=limit_ms) if not one.blocks]


def test_slow_guard_is_reported_with_plan_and_index(
    settings: Settings, connection: psycopg.Connection[Any], rows: None
) -> None:
    assert offered(settings, NEVER) == []
    (advice,) = offered(settings, AT_ONCE)
    assert advice.where == "migrations.skip_resets"
    assert any("Seq Scan on container_repositories" in line for line in advice.shown)
    assert advice.remedy == STATEMENT
    assert str(advice).splitlines()[-1].strip() == STATEMENT
    assert indexes(connection) == 1


def test_existing_index_is_used_and_not_suggested(
    settings: Settings, connection: psycopg.Connection[Any], rows: None
) -> None:
    connection.execute(STATEMENT.encode())
    assert offered(settings, AT_ONCE) == []
    plan = connection.execute("EXPLAIN SELECT count(*) FROM container_repositories WHERE migration_state = 'x'")
    assert "Index" in str(plan.fetchall())


def test_invalid_index_is_to_be_dropped_first(
    settings: Settings, connection: psycopg.Connection[Any], rows: None
) -> None:
    connection.execute(STATEMENT.encode())
    connection.execute(
        "UPDATE pg_index SET indisvalid = false"
        " WHERE NOT indisprimary AND indrelid = 'container_repositories'::regclass"
    )
    (advice,) = offered(settings, AT_ONCE)
    assert advice.remedy.startswith('DROP INDEX CONCURRENTLY "public"."container_repositories_migration_state_')
    assert advice.remedy.endswith(STATEMENT)


def test_missing_table_or_database_gives_no_suggestion(settings: Settings, closed_port: int) -> None:
    assert offered(settings, AT_ONCE) == []
    away = settings.database("main").model_copy(
        update={"dsn": type(settings.database("main").dsn)(f"host=127.0.0.1 port={closed_port}")}
    )
    assert offered(settings.model_copy(update={"databases": {"main": away}}), AT_ONCE) == []


def test_check_shows_suggested_index_and_succeeds(config: Path, rows: None) -> None:
    app = typer.Typer()
    app.command()(check_with(lambda settings, _: advise(settings, limit_ms=AT_ONCE)))
    found = json.loads(CliRunner().invoke(app, ["--json", "--config", str(config)]).stdout)
    *others, of_kafka = (each for each in found["advice"] if not each["where"].startswith("databases."))
    assert (of_kafka["where"], [(each["where"], each["remedy"]) for each in others]) == (
        "kafka",
        [("migrations.skip_resets", STATEMENT)],
    )
    said = CliRunner().invoke(app, ["--config", str(config)]).stdout
    assert "    Aggregate" in said
    assert STATEMENT in said
    assert "Seq Scan" not in str(found["findings"])


def indexes(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT count(*) FROM pg_index WHERE indrelid = 'container_repositories'::regclass")
    found = row.fetchone()
    assert found is not None
    return int(found[0])
