"""Runs `headrace schema …` on a test's own registry: its settings, its database, and the commands' results."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import typer
from typer.testing import CliRunner, Result

from consumers.commands import schema_command
from consumers.migrations.status_backfills import StatusBackfills
from consumers.runtime.assembly import consumer_of
from consumers.runtime.totals import Totals
from infra.settings.model import Settings
from schemas.errors import HeadraceError
from tests.conftest import Database
from tests.consumers.container_repositories import write_settings
from tests.documents import hold

Run = Callable[..., Result]


def registry_settings(place: Path, bootstrap_servers: str, prefix: str, database: Database) -> Path:
    """Write a settings file with one database, `main`, whose repositories are captured."""
    return write_settings(
        place / "headrace.toml",
        {
            "prefix": prefix,
            "kafka": {"bootstrap_servers": bootstrap_servers, "partitions": 2},
            "databases": {
                "main": {
                    "dsn": database.dsn,
                    "gitlab_schemas": ["registry", "gitlab_main"],
                    "tables": ["public.repositories"],
                    "allow_unlimited_wal": True,
                }
            },
            "migrations": {"status_backfills": {"lock_timeout_ms": 50}},
        },
    )


def runner(config: Path) -> Run:
    """Return a function that runs `headrace schema RELEASE status_backfills …`; the result has any exception."""
    app = typer.Typer()
    app.add_typer(schema_command.app, name="schema")

    def invoke(release: str, *options: str, answer: str | None = None) -> Result:
        words = ["schema", release, "status_backfills", *options, "--config", str(config)]
        result = CliRunner().invoke(app, words, input=answer)
        if result.exception is None:
            hold(tuple(words), "".join(result.stdout.splitlines()[-1:]))  # the log of this process comes before it
        return result

    return invoke


def answer(result: Result) -> dict[str, Any]:
    """Return the JSON of a successful release, which follows the log of this process."""
    assert result.exception is None, result.exception
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def done(result: Result) -> list[str]:
    """Return the statements of a successful release."""
    return [each["statement"] for each in answer(result)["done"]]


def refused(result: Result) -> str:
    """Return the error of a release that is refused with exit code 3."""
    assert isinstance(result.exception, HeadraceError), (result.output, result.exception)
    assert result.exception.exit_code == 3, result.exception
    return str(result.exception)


def caught_up(settings: Settings) -> Totals:
    """Run a consumer in this thread until it has caught up."""
    work = StatusBackfills.configure(settings.migration("status_backfills"))
    return consumer_of(settings, work, "main", stopping=threading.Event(), until_caught_up=True).run()


def complete(connection: psycopg.Connection[Any]) -> bool:
    """Whether the migration is recorded as complete."""
    row = connection.execute("SELECT completed_at FROM headrace.migrations WHERE name = 'status_backfills'").fetchone()
    return row is not None and row[0] is not None
