"""A command records who did what and why in the transaction that does it: killed in it, it leaves neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.postgres.control import ensure_control_schema
from infra.settings.model import Settings
from infra.state.history import operator, read_history
from tests.conftest import Database
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill
from tests.consumers.services import advisory_lock_is_waited_for
from tests.shells import Shell

pytestmark = pytest.mark.stack

Connection = psycopg.Connection[Any]

_FORBID: Final = (
    "ALTER TABLE container_repositories ADD CONSTRAINT poison CHECK (id <> 2 OR migration_state <> 'default')"
)
_HANG: Final = """
    CREATE FUNCTION public.hang() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NEW; END $$;
    CREATE TRIGGER hang BEFORE INSERT ON headrace.history FOR EACH ROW EXECUTE FUNCTION public.hang()
"""


@dataclass(frozen=True)
class Command:
    """A command, the query that shows what it changes, and the details that it records."""

    words: str
    changes: str
    details: tuple[str, ...] = ()
    recorded: str = ""

    @property
    def action(self) -> str:
        return self.recorded or self.words.split()[0]


_SETTLED: Final = "SELECT count(*) FROM headrace.dead_letters WHERE settled_at IS NOT NULL"
COMMANDS: Final = (
    Command("pause skip_resets", "SELECT paused FROM headrace.migrations"),
    Command("resume skip_resets", "SELECT paused, failed FROM headrace.migrations"),
    Command(
        "pace skip_resets --max-rate 5",
        "SELECT max_rate, transaction_ms FROM headrace.paces",
        ("max_rate", "transaction_ms"),
    ),
    Command("replay skip_resets", "SELECT run FROM headrace.migrations", ("run", "start", "selected")),
    Command("dead-letters retry skip_resets", _SETTLED, ("event", "outcome"), "retry"),
    Command("dead-letters discard skip_resets --all --yes", _SETTLED, ("event", "outcome"), "discard"),
    Command(
        "guard gitlab_main --database main --yes", "SELECT count(*) FROM pg_trigger WHERE tgname = 'headrace_guard'"
    ),
)


@pytest.fixture
def shell(config: Path) -> Shell:
    return Shell(config.parent)


@pytest.fixture
def dead_letter(feed: Feed, connection: Connection, catch_up: Callable[..., object]) -> None:
    """A run that has failed, and whose second row became a dead letter, which could be applied now."""
    connection.execute(_FORBID)
    rows = dict.fromkeys((1, 2, 3), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    catch_up()
    connection.execute("ALTER TABLE container_repositories DROP CONSTRAINT poison")


@contextmanager
def hanging(connection: Connection) -> Iterator[None]:
    """Let no transaction record an action meanwhile."""
    connection.execute(_HANG)
    connection.execute("SELECT pg_advisory_lock(4711)")
    try:
        yield
    finally:
        connection.execute("SELECT pg_advisory_unlock(4711)")
        connection.execute("DROP TRIGGER hang ON headrace.history")


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.action)
def test_killed_command_leaves_neither_its_change_nor_its_record(
    command: Command, dead_letter: None, shell: Shell, settings: Settings, connection: Connection, database: Database
) -> None:
    ensure_control_schema(connection, "main", ["gitlab_main"])
    if command.action == "resume":
        connection.execute("UPDATE headrace.migrations SET paused = true")
    before = connection.execute(command.changes.encode()).fetchall()
    looking = database.connect()

    def gone() -> bool:
        found = looking.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'headrace %'"
        )
        return found.fetchone() == (0,)

    until(gone, "the consumer's session has ended")
    with hanging(connection):
        process = shell.start(*command.words.split(), "--reason", "CHG-7")
        until(lambda: advisory_lock_is_waited_for(looking), f"{command.words} records what it did")
        process.kill()
        process.communicate()
    until(gone, "the session of the killed command has ended")
    assert connection.execute(command.changes.encode()).fetchall() == before
    assert read_history(connection, limit=10) == []

    ended = shell.run(*command.words.split(), "--reason", "CHG-7")
    assert ended.code == 0, ended.err
    assert connection.execute(command.changes.encode()).fetchall() != before
    (entry, *others) = read_history(connection, limit=10)
    assert (entry.action, entry.actor, entry.reason) == (command.action, operator().name, "CHG-7")
    assert tuple(sorted(entry.details)) == tuple(sorted(command.details))
    assert {each.request for each in others} <= {entry.request}

    shown = shell.run("history", entry.subject, "--json")
    assert entry.document()["at"] in shown.out
    assert "why: CHG-7" in shell.run("history", COLUMNS="60").out


def test_reason_without_an_action_is_refused(shell: Shell, config: Path) -> None:
    for words in ("produce main", "schema backfill status_backfills"):
        assert "--reason needs --" in shell.call(*words.split(), "--reason", "x").error(2)
