"""Dead letters of a migration without a guard, and `headrace dead-letters` for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
from typer.testing import Result

from consumers.runtime.assembly import consumer_of
from infra.settings.model import Settings
from tests.consumers.commands.letters import Unguarded
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill

NAME = "skip_resets"
FORBID = "ALTER TABLE container_repositories ADD CONSTRAINT poison CHECK (id < 70 OR migration_state <> 'default')"
ALLOW = "ALTER TABLE container_repositories DROP CONSTRAINT poison"
Connection = psycopg.Connection[Any]
Command = Callable[..., Result]


def listed(command: Command, config: Path, *options: str) -> list[str]:
    result = command(config, "list", NAME, "--json", *options)
    assert result.exception is None, result.exception
    return [each["event"] for each in json.loads(result.output)["dead_letters"]]


def done(command: Command, config: Path, *arguments: str) -> dict[str, Any]:
    result = command(config, *arguments, "--json")
    assert result.exception is None, result.exception
    return dict(json.loads(result.output.splitlines()[-1]))  # after this process's log


def consume(settings: Settings, database: str = "main", kind: type[Unguarded] = Unguarded) -> None:
    migration = kind.configure(settings.migration(NAME))
    consumer_of(settings, migration, database, stopping=threading.Event(), until_caught_up=True).run()


def make_dead_letters(connection: Connection, feed: Feed, settings: Settings, keys: Sequence[int]) -> None:
    """Make the events of `keys`, all 70 or more, dead letters, then remove the cause."""
    connection.execute(FORBID)
    rows = dict.fromkeys(keys, TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    consume(settings)
    connection.execute(ALLOW)
