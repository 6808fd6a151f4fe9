"""Dead letters belong to one database, are retried by one process at a time, and are neither lost nor applied twice."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from consumers.commands.dead_letters_command import StillDeadLetters
from consumers.dead_letters import settle
from consumers.dead_letters.settle import read_dead_letters
from consumers.delivery.dead_letter_topic import DeadLetterWriter, NewDeadLetter, read_dead_letters_topic
from consumers.operations.replay import replay
from consumers.runtime import assembly
from consumers.testing.waiting import PATIENCE
from infra.kafka import topics
from infra.settings.file import load_settings
from infra.settings.model import Settings
from schemas.errors import HeadraceError, Refused, UsageError
from tests.conftest import Database
from tests.consumers.commands import letters
from tests.consumers.commands.letters import OfEach, Unguarded
from tests.consumers.container_repositories import TABLE, TOO_MANY_TAGS, Feed, fill, states, write_settings, written
from tests.consumers.delivery.dead_letters import (
    ALLOW,
    FORBID,
    NAME,
    Command,
    Connection,
    consume,
    done,
    listed,
    make_dead_letters,
)
from tests.consumers.known_migrations import known_are

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("unguarded")]


def test_dead_letters_are_retried_only_in_their_database(
    command: Command,
    prefix: str,
    bootstrap_servers: str,
    new_databases: Callable[[str | None], Database],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known_are(monkeypatch, {NAME: OfEach})
    databases = {name: new_databases(None) for name in ("main", "ci")}
    config = write_settings(
        tmp_path / "headrace.toml",
        {
            "prefix": prefix,
            "kafka": {"bootstrap_servers": bootstrap_servers},
            "databases": {
                name: {"dsn": each.dsn, "gitlab_schemas": ["gitlab_shared"]} for name, each in databases.items()
            },
        },
    )
    settings = load_settings(config)
    connections = {name: each.connect() for name, each in databases.items()}
    # Row 77 cannot be written in main, row 88 in ci; each database has its own rows with both keys.
    for (name, connection), key in zip(connections.items(), (77, 88), strict=True):
        connection.execute(TABLE)
        connection.execute(
            "ALTER TABLE container_repositories ADD CONSTRAINT poison"
            f" CHECK (id <> {key} OR migration_state <> 'default')"
        )
        fill(connection, {key: TOO_MANY_TAGS})
        Feed(settings, database=name, gitlab_schema="gitlab_shared").snapshot({key: TOO_MANY_TAGS})
        consume(settings, name, OfEach)
        connection.execute(ALLOW)
    fill(connections["ci"], {77: TOO_MANY_TAGS})

    def using(name: str) -> None:
        monkeypatch.setenv("HEADRACE_MIGRATIONS__SKIP_RESETS__DATABASE", name)

    both = listed(command, config)
    assert [(name.partition("/")[0], "gitlab_shared.ci." in name) for name in both] == [("main", False), ("ci", True)]
    unsaid = command(config, "retry", NAME).exception
    assert isinstance(unsaid, UsageError)
    assert "runs once for each of the databases ci, main; choose one with --database" in str(unsaid)
    # A promoted copy of main has main's rows of dead letters too.
    letter = connections["main"].execute("SELECT * FROM headrace.dead_letters").fetchone()
    assert letter is not None
    connections["ci"].execute(f"INSERT INTO headrace.dead_letters VALUES ({', '.join(['%s'] * len(letter))})", letter)
    assert listed(command, config, "--database", "ci") == both[1:]
    assert isinstance(command(config, "list", NAME, "--database", "other").exception, UsageError)
    using("ci")
    (of_ci,) = listed(command, config)
    assert "gitlab_shared.ci." in of_ci
    assert done(command, config, "retry", NAME)["applied"] == 1
    assert states(connections["ci"]) == {77: TOO_MANY_TAGS, 88: ("default", 2)}
    using("main")
    (of_main,) = listed(command, config)
    assert "gitlab_shared.main." in of_main
    assert done(command, config, "retry", NAME)["applied"] == 1
    assert states(connections["main"]) == {77: ("default", 2)}


def test_concurrent_retries_apply_each_event_once(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings, ledger: Callable[..., Any]
) -> None:
    make_dead_letters(connection, feed, settings, range(70, 80))
    first = letters.start(config, "retry", NAME, "--json", point="stops once it has read them")
    try:
        letters.until_stopped(first)
        second = command(config, "retry", NAME)
        first.send_signal(signal.SIGCONT)
        out, error = first.communicate(timeout=PATIENCE)
    finally:
        first.kill()
        first.wait()
    assert sorted(written(connection)) == list(range(70, 80)), (out, error, second.output)
    assert (ledger()["applied"], ledger()["dead_letters"]) == (10, 0)
    assert json.loads(out)["applied"] == 10
    assert isinstance(second.exception, HeadraceError)
    assert second.exception.exit_code == 3
    assert "headrace dead-letters skip_resets" in str(second.exception)


class FailsToWrite(DeadLetterWriter):
    """Writes the dead letter durably, then loses the transaction that should follow, and the cause is gone."""

    connection: Connection

    def keep(self, dead_letters: Sequence[NewDeadLetter], run: int) -> None:
        super().keep(dead_letters, run)
        self.connection.execute(
            f"{ALLOW}; SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = current_database() AND application_name = 'headrace consume {NAME}'"
        )


def test_event_applied_after_all_is_not_a_dead_letter(
    command: Command,
    feed: Feed,
    connection: Connection,
    config: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    ledger: Callable[..., Any],
) -> None:
    FailsToWrite.connection = connection
    monkeypatch.setattr(assembly, "DeadLetterWriter", FailsToWrite)
    connection.execute(FORBID)
    fill(connection, {77: TOO_MANY_TAGS})
    feed.snapshot({77: TOO_MANY_TAGS})
    consume(settings)
    assert written(connection) == [77]

    assert listed(command, config) == []
    assert done(command, config, "retry", NAME)["applied"] == 0
    assert written(connection) == [77]
    assert (ledger()["applied"], ledger()["dead_letters"]) == (1, 0)


class RetriedAtOnce(DeadLetterWriter):
    """An operator retries everything between writing the dead letter and the consumer's transaction."""

    retry: Callable[[], None]

    def keep(self, dead_letters: Sequence[NewDeadLetter], run: int) -> None:
        super().keep(dead_letters, run)
        type(self).retry()


def test_event_is_not_retried_before_the_ledger_is_past_it(
    command: Command,
    feed: Feed,
    connection: Connection,
    config: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    ledger: Callable[..., Any],
) -> None:
    early: list[int] = []

    def retry_early() -> None:
        connection.execute(ALLOW)
        early.append(done(command, config, "retry", NAME)["applied"])

    monkeypatch.setattr(RetriedAtOnce, "retry", staticmethod(retry_early), raising=False)
    monkeypatch.setattr(assembly, "DeadLetterWriter", RetriedAtOnce)
    connection.execute(FORBID)
    fill(connection, {77: TOO_MANY_TAGS})
    feed.snapshot({77: TOO_MANY_TAGS})
    consume(settings)
    assert early == [0]
    assert len(listed(command, config)) == 1 == ledger()["dead_letters"]
    assert done(command, config, "retry", NAME)["applied"] == 1
    assert written(connection) == [77]
    assert (ledger()["applied"], ledger()["dead_letters"]) == (1, 0)


def age(connection: Connection) -> None:
    """Make the settled dead letters older than the lag of any standby."""
    connection.execute("UPDATE headrace.dead_letters SET settled_at = settled_at - interval '25 hours'")


def kept(settings: Settings) -> list[tuple[int, int]]:
    """Return the offset and run of each event still in Kafka."""
    return [(entry.offset, entry.run) for entry in read_dead_letters_topic(settings, NAME)]


def killed(config: Path, point: str) -> None:
    """Run `dead-letters retry` until it is killed at the given point."""
    process = letters.start(config, "retry", NAME, point=point)
    try:
        _, error = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, error


@pytest.mark.long
def test_retry_killed_twice_anywhere_applies_each_event_once(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings, ledger: Callable[..., Any]
) -> None:
    make_dead_letters(connection, feed, settings, range(70, 74))
    for point, applied in (("before the commit", 0), ("after the commit", 1)):
        for number in (1, 2):
            killed(config, point)
            assert len(written(connection)) == number * applied
            assert len(listed(command, config)) == 4 - number * applied == ledger()["dead_letters"]
    assert done(command, config, "retry", NAME)["applied"] == 2
    assert sorted(written(connection)) == [70, 71, 72, 73]
    assert (ledger()["applied"], ledger()["dead_letters"]) == (4, 0)

    # Their events are still in Kafka, in case a failover loses the commits.
    assert done(command, config, "retry", NAME)["applied"] == 0
    assert len(kept(settings)) == 4
    age(connection)
    killed(config, "before the events are removed")
    assert len(kept(settings)) == 4
    for _ in range(2):
        killed(config, "after the events are removed")
        assert kept(settings) == []
        assert connection.execute("SELECT count(*) FROM headrace.dead_letters").fetchone() == (4,)
    assert done(command, config, "retry", NAME)["applied"] == 0
    assert connection.execute("SELECT count(*) FROM headrace.dead_letters").fetchone() == (0,)
    assert sorted(written(connection)) == [70, 71, 72, 73]


@pytest.mark.parametrize("word", ["retry", "discard"])
def test_settled_dead_letter_is_not_settled_again(
    feed: Feed,
    connection: Connection,
    settings: Settings,
    ledger: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    word: str,
) -> None:
    """As when a call loses its connection during the commit and repeats it."""
    make_dead_letters(connection, feed, settings, [70, 71])
    migration = Unguarded.configure(settings.migration(NAME))
    entries = read_dead_letters(settings, migration, "main") * 2
    if word == "retry":
        monkeypatch.setattr(settle, "chosen", lambda *_: entries)
        result = settle.retry(settings, migration, "main", [], threading.Event())
    else:
        result = settle.discard(settings, migration, "main", entries, threading.Event())
    assert result.before == 2
    assert sorted(written(connection)) == ([70, 71] if word == "retry" else [])
    assert (ledger()["applied"] + ledger()["skipped"], ledger()["dead_letters"]) == (2, 0)


def test_dead_letter_of_replay_survives_removal_of_earlier_one(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings
) -> None:
    make_dead_letters(connection, feed, settings, [77])
    assert done(command, config, "retry", NAME)["applied"] == 1
    age(connection)
    connection.execute("UPDATE container_repositories SET migration_state = 'import_skipped'")
    connection.execute(FORBID)
    replay(settings, Unguarded, "main")
    consume(settings)
    connection.execute(ALLOW)
    assert kept(settings) == [(0, 1), (0, 2)]
    assert done(command, config, "retry", NAME)["applied"] == 1
    assert kept(settings) == [(0, 2)]
    # once by each retry, and by hand in between
    assert written(connection) == [77, 77, 77]


def test_event_failing_again_in_replay_is_one_dead_letter(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings
) -> None:
    make_dead_letters(connection, feed, settings, [77])
    connection.execute(FORBID)
    replay(settings, Unguarded, "main")
    consume(settings)
    connection.execute(ALLOW)
    assert len(listed(command, config)) == 1
    assert done(command, config, "retry", NAME)["applied"] == 1
    assert listed(command, config) == []
    assert written(connection) == [77]


def test_events_of_recreated_topic_are_other_dead_letters(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings
) -> None:
    feed.send([(b"key", b"nonsense")])
    consume(settings)
    topics.delete_topics(settings.kafka, [feed.topic])
    again = Feed(settings)
    again.send([(b"key", b"other nonsense")])
    replay(settings, Unguarded, "main")
    consume(settings)
    first, second = read_dead_letters(settings, Unguarded, "main")
    assert (first.name, first.value, second.value) == (second.name, b"nonsense", b"other nonsense")
    assert done(command, config, "discard", NAME, first.name, "--yes")["discarded"] == 2


def test_dead_letter_without_event_is_listed_and_discarded_but_not_retried(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings, ledger: Callable[..., Any]
) -> None:
    make_dead_letters(connection, feed, settings, [77])
    DeadLetterWriter(settings, NAME, "main").remove(read_dead_letters_topic(settings, NAME))
    (name,) = listed(command, config)
    stays = command(config, "retry", NAME)
    assert isinstance(stays.exception, StillDeadLetters)
    assert f"its event is gone from {settings.prefix}.dead_letters.{NAME}: discard it" in str(stays.exception)
    assert done(command, config, "discard", NAME, name, "--yes")["discarded"] == 1
    assert (listed(command, config), ledger()["dead_letters"], ledger()["skipped"]) == ([], 0, 1)


def test_dead_letters_follow_their_gitlab_schema_to_its_next_owner(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings
) -> None:
    make_dead_letters(connection, feed, settings, [77, 78])
    names = listed(command, config)
    connection.execute("UPDATE headrace.database SET name = 'second'")
    moved = config.with_name("moved.toml")
    moved.write_text(config.read_text().replace("databases.main", "databases.second"))
    refused = command(config, "retry", NAME).exception
    assert isinstance(refused, Refused), refused
    connection.execute("UPDATE headrace.schema_ownership SET owner = 'second', epoch = 2")
    assert listed(command, moved) == names
    # A failure in the same run at the next owner is not a second dead letter: the event has one row.
    entry = read_dead_letters_topic(settings, NAME)[0]
    DeadLetterWriter(settings, NAME, "second").keep(
        [NewDeadLetter(*entry.identity[:2], "again", entry.key, entry.value or b"")], 1
    )
    assert listed(command, moved) == names
    assert done(command, moved, "retry", NAME)["applied"] == 2
    assert sorted(written(connection)) == [77, 78]
