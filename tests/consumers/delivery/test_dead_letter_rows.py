"""Dead letters: of one database alone, retried by one process at a time, neither lost nor applied twice."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from consumers.commands import dead_letters_command
from consumers.commands.dead_letters_command import StillParked
from consumers.contract.decisions import Change
from consumers.contract.migration import Cursor
from consumers.dead_letters import settle
from consumers.dead_letters.settle import read_dead_letters
from consumers.delivery.dead_letter_rows import Busy
from consumers.delivery.dead_letter_topic import Parked, Parking, read_parked
from consumers.operations import catalog
from consumers.operations.replay import replay
from consumers.runtime import assembly
from consumers.runtime.assembly import consumer_of
from infra.kafka import topics
from infra.postgres.advisory_locks import lock_key
from infra.service import log
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.stack import EmbeddedStack, embedded_stack
from schemas.errors import HeadraceError, Refused, UsageError
from tests.conftest import Database
from tests.consumers.commands import letters
from tests.consumers.commands.letters import OfEach, Unguarded
from tests.consumers.container_repositories import TABLE, TOO_MANY_TAGS, Feed, fill, states, write_settings, written
from tests.consumers.services import PATIENCE, until

pytestmark = pytest.mark.stack

NAME = "skip_resets"
FORBID = "ALTER TABLE container_repositories ADD CONSTRAINT poison CHECK (id < 70 OR migration_state <> 'default')"
ALLOW = "ALTER TABLE container_repositories DROP CONSTRAINT poison"
Connection = psycopg.Connection[Any]
Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """A function that runs `headrace parked` with a settings file."""
    monkeypatch.setattr(log, "configure", lambda: None)

    def run(config: Path, *arguments: str) -> Result:
        return CliRunner().invoke(dead_letters_command.app, [*arguments, "--config", str(config)])

    return run


@pytest.fixture(autouse=True)
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands' migration has no guard of its own: what is applied twice is seen."""
    monkeypatch.setattr(catalog, "migrations", lambda: {NAME: Unguarded})


def listed(command: Command, config: Path, *options: str) -> list[str]:
    result = command(config, "list", NAME, "--json", *options)
    assert result.exception is None, result.exception
    return [each["event"] for each in json.loads(result.output)["parked"]]


def done(command: Command, config: Path, *arguments: str) -> dict[str, Any]:
    result = command(config, *arguments, "--json")
    assert result.exception is None, result.exception
    return dict(json.loads(result.output.splitlines()[-1]))  # the log of this process stands before it


def consume(settings: Settings, database: str = "main", kind: type[Unguarded] = Unguarded) -> None:
    migration = kind.configure(settings.migration(NAME))
    consumer_of(settings, migration, database, stopping=threading.Event(), until_caught_up=True).run()


def park(connection: Connection, feed: Feed, settings: Settings, keys: Sequence[int]) -> None:
    """Have a consumer park the events of `keys`, all of them 70 or more, whose cause is gone then."""
    connection.execute(FORBID)
    rows = dict.fromkeys(keys, TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    consume(settings)
    connection.execute(ALLOW)


def test_dead_letters_of_one_database_are_not_retried_in_another(
    command: Command,
    prefix: str,
    bootstrap_servers: str,
    new_databases: Callable[[str | None], Database],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalog, "migrations", lambda: {NAME: OfEach})
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
    # Row 77 cannot be written in main, row 88 in ci; both databases have both, as rows of their own.
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
    assert "runs once for each of the databases ci, main; say with --database" in str(unsaid)
    # A promoted copy of main has main's dead letters on record too.
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


def test_two_retries_at_once_apply_each_event_once(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings, ledger: Callable[..., Any]
) -> None:
    park(connection, feed, settings, range(70, 80))
    first = letters.start(config, "retry", NAME, "--json", point="stands still once it has read them")
    try:
        letters.until_stopped(first)
        second = command(config, "retry", NAME)
        first.send_signal(signal.SIGCONT)
        out, error = first.communicate(timeout=PATIENCE)
    finally:
        first.kill()
        first.wait()
    assert sorted(written(connection)) == list(range(70, 80)), (out, error, second.output)
    assert (ledger()["applied"], ledger()["parked"]) == (10, 0)
    assert json.loads(out)["applied"] == 10
    assert isinstance(second.exception, HeadraceError)
    assert second.exception.exit_code == 3
    assert "headrace parked skip_resets" in str(second.exception)


class ParksInVain(Parking):
    """Parks durably, then the transaction that was to follow is lost, and the cause is gone."""

    connection: Connection

    def keep(self, parked: Sequence[Parked], run: int) -> None:
        super().keep(parked, run)
        self.connection.execute(
            f"{ALLOW}; SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = current_database() AND application_name = 'headrace consume {NAME}'"
        )


def test_an_event_that_was_applied_after_all_is_no_dead_letter(
    command: Command,
    feed: Feed,
    connection: Connection,
    config: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    ledger: Callable[..., Any],
) -> None:
    ParksInVain.connection = connection
    monkeypatch.setattr(assembly, "Parking", ParksInVain)
    connection.execute(FORBID)
    fill(connection, {77: TOO_MANY_TAGS})
    feed.snapshot({77: TOO_MANY_TAGS})
    consume(settings)
    assert written(connection) == [77]

    assert listed(command, config) == []
    assert done(command, config, "retry", NAME)["applied"] == 0
    assert written(connection) == [77]
    assert (ledger()["applied"], ledger()["parked"]) == (1, 0)


class RetriedAtOnce(Parking):
    """Somebody retries everything between the parking and the consumer's transaction."""

    retry: Callable[[], None]

    def keep(self, parked: Sequence[Parked], run: int) -> None:
        super().keep(parked, run)
        type(self).retry()


def test_an_event_is_not_retried_before_the_consumer_is_past_it(
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
    monkeypatch.setattr(assembly, "Parking", RetriedAtOnce)
    connection.execute(FORBID)
    fill(connection, {77: TOO_MANY_TAGS})
    feed.snapshot({77: TOO_MANY_TAGS})
    consume(settings)
    assert early == [0]
    assert len(listed(command, config)) == 1 == ledger()["parked"]
    assert done(command, config, "retry", NAME)["applied"] == 1
    assert written(connection) == [77]
    assert (ledger()["applied"], ledger()["parked"]) == (1, 0)


def age(connection: Connection) -> None:
    """Let the settled dead letters be older than any standby is behind."""
    connection.execute("UPDATE headrace.dead_letters SET settled_at = settled_at - interval '25 hours'")


def kept(settings: Settings) -> list[tuple[int, int]]:
    """Return the offset and run of each event that Kafka still has."""
    return [(entry.offset, entry.run) for entry in read_parked(settings, NAME)]


def killed(config: Path, point: str) -> None:
    """Run `parked retry` until it is killed where it is told to."""
    process = letters.start(config, "retry", NAME, point=point)
    try:
        _, error = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, error


def test_a_retry_that_is_killed_anywhere_twice_applies_each_event_once(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings, ledger: Callable[..., Any]
) -> None:
    park(connection, feed, settings, range(70, 74))
    for point, applied in (("before the commit", 0), ("after the commit", 1)):
        for number in (1, 2):
            killed(config, point)
            assert len(written(connection)) == number * applied
            assert len(listed(command, config)) == 4 - number * applied == ledger()["parked"]
    assert done(command, config, "retry", NAME)["applied"] == 2
    assert sorted(written(connection)) == [70, 71, 72, 73]
    assert (ledger()["applied"], ledger()["parked"]) == (4, 0)

    # Their events are still in Kafka, for the case that a failover takes the commits back.
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
def test_one_that_is_settled_is_not_settled_again(
    feed: Feed,
    connection: Connection,
    settings: Settings,
    ledger: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    word: str,
) -> None:
    """Such as by a call whose connection is lost with the answer to its commit: it asks again."""
    park(connection, feed, settings, [70, 71])
    migration = Unguarded.configure(settings.migration(NAME))
    entries = read_dead_letters(settings, migration, "main") * 2
    if word == "retry":
        monkeypatch.setattr(settle, "chosen", lambda *_: entries)
        result = settle.retry(settings, migration, "main", [], threading.Event())
    else:
        result = settle.discard(settings, migration, "main", entries, threading.Event())
    assert result.before == 2
    assert sorted(written(connection)) == ([70, 71] if word == "retry" else [])
    assert (ledger()["applied"] + ledger()["skipped"], ledger()["parked"]) == (2, 0)


def test_an_event_that_a_replay_parks_again_outlives_the_removal_of_its_first_parking(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings
) -> None:
    park(connection, feed, settings, [77])
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


def test_an_event_that_a_replay_parks_again_is_one_dead_letter(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings
) -> None:
    park(connection, feed, settings, [77])
    connection.execute(FORBID)
    replay(settings, Unguarded, "main")
    consume(settings)
    connection.execute(ALLOW)
    assert len(listed(command, config)) == 1
    assert done(command, config, "retry", NAME)["applied"] == 1
    assert listed(command, config) == []
    assert written(connection) == [77]


def test_events_of_a_topic_that_was_made_again_are_other_dead_letters(
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


def test_a_dead_letter_whose_event_is_gone_is_listed_and_discarded_but_not_retried(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings, ledger: Callable[..., Any]
) -> None:
    park(connection, feed, settings, [77])
    Parking(settings, NAME, "main").remove(read_parked(settings, NAME))
    (name,) = listed(command, config)
    stays = command(config, "retry", NAME)
    assert isinstance(stays.exception, StillParked)
    assert f"its event is gone from {settings.prefix}.parked.{NAME}: discard it" in str(stays.exception)
    assert done(command, config, "discard", NAME, name, "--yes")["discarded"] == 1
    assert (listed(command, config), ledger()["parked"], ledger()["skipped"]) == ([], 0, 1)


def test_dead_letters_follow_their_gitlab_schema_to_its_next_owner(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings
) -> None:
    park(connection, feed, settings, [77, 78])
    names = listed(command, config)
    connection.execute("UPDATE headrace.database SET name = 'second'")
    moved = config.with_name("moved.toml")
    moved.write_text(config.read_text().replace("databases.main", "databases.second"))
    refused = command(config, "retry", NAME).exception
    assert isinstance(refused, Refused), refused
    connection.execute("UPDATE headrace.schema_ownership SET owner = 'second', epoch = 2")
    assert listed(command, moved) == names
    # What the next owner parks of the same run is no second dead letter: the one row is of the event.
    entry = read_parked(settings, NAME)[0]
    Parking(settings, NAME, "second").keep([Parked(*entry.identity[:2], "again", entry.key, entry.value or b"")], 1)
    assert listed(command, moved) == names
    assert done(command, moved, "retry", NAME)["applied"] == 2
    assert sorted(written(connection)) == [77, 78]


class LosesItsSession(Unguarded):
    """Loses its connection once, at row 78, before the commit; what is done in the meantime is the test's."""

    meanwhile: Callable[[int], None]
    lost: list[int]

    def apply(self, cursor: Cursor, changes: Sequence[Change]) -> int:
        applied = super().apply(cursor, changes)
        if changes[0].key == 78 and not self.lost:
            self.lost.append(cursor.connection.info.backend_pid)
            type(self).meanwhile(self.lost[0])
        return applied


def losing(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[int], None]) -> None:
    monkeypatch.setattr(LosesItsSession, "lost", [], raising=False)
    monkeypatch.setattr(LosesItsSession, "meanwhile", staticmethod(meanwhile), raising=False)
    monkeypatch.setattr(catalog, "migrations", lambda: {NAME: LosesItsSession})


def test_what_a_failover_took_back_in_mid_retry_is_retried_at_once(
    command: Command,
    feed: Feed,
    connection: Connection,
    config: Path,
    settings: Settings,
    ledger: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    park(connection, feed, settings, range(70, 90))

    def fail_over(pid: int) -> None:
        # As a standby that lacks the commits so far has it.
        connection.execute("UPDATE headrace.dead_letters SET settled_at = NULL WHERE settled_at IS NOT NULL")
        connection.execute("UPDATE headrace.progress SET parked = parked + applied, applied = 0 WHERE applied > 0")
        connection.execute("SELECT pg_terminate_backend(%s)", (pid,))

    losing(monkeypatch, fail_over)
    assert done(command, config, "retry", NAME)["applied"] == 20
    assert (ledger()["applied"], ledger()["parked"], listed(command, config)) == (20, 0, [])


def test_a_retry_that_lost_its_session_stops_where_another_one_has_the_lock_now(
    command: Command,
    feed: Feed,
    connection: Connection,
    config: Path,
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    park(connection, feed, settings, range(70, 90))
    other = database.connect()
    key = lock_key("dead letters", NAME)
    taking = threading.Thread(target=lambda: other.execute("SELECT pg_advisory_lock(%s)", (key,)))

    def lose(pid: int) -> None:
        taking.start()
        until(
            lambda: connection.execute("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory'").fetchone(),
            "the other session waits for the lock",
        )
        connection.execute("SELECT pg_terminate_backend(%s)", (pid,))

    losing(monkeypatch, lose)
    stopped = command(config, "retry", NAME).exception
    taking.join()
    assert isinstance(stopped, Busy), stopped
    assert str(other.info.backend_pid) in str(stopped)
    assert 78 not in written(connection)
    other.close()
    monkeypatch.setattr(catalog, "migrations", lambda: {NAME: Unguarded})
    command(config, "retry", NAME)
    assert sorted(written(connection)) == list(range(70, 90))


def test_a_dead_letter_whose_transaction_is_not_visible_yet_stays(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings
) -> None:
    row = connection.execute("SELECT (pg_current_xact_id()::text::bigint + 2000) % 4294967296").fetchone()
    assert row is not None
    # As long as there is no such transaction it is taken for one that a failover lost.
    feed.xid = row[0]
    park(connection, feed, settings, [77])
    connection.execute("BEGIN")
    while connection.execute("SELECT pg_current_xact_id()::text").fetchone() != (str(row[0]),):
        connection.execute("COMMIT")
        connection.execute("BEGIN")
    stays = command(config, "retry", NAME).exception
    assert isinstance(stays, StillParked)
    assert "its transaction is not visible yet" in str(stays)
    connection.execute("COMMIT")
    assert done(command, config, "retry", NAME)["applied"] == 1
    assert written(connection) == [77]


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedStack]:
    with embedded_stack() as stack:
        yield stack


def test_a_dead_letter_whose_retry_a_failover_lost_is_retried_once_more(
    command: Command, own: EmbeddedStack, prefix: str, tmp_path: Path
) -> None:
    def config_of(dsn: str) -> Path:
        return write_settings(
            tmp_path / "headrace.toml",
            {
                "prefix": prefix,
                "kafka": {"bootstrap_servers": own.endpoints.bootstrap_servers},
                "databases": {"main": {"dsn": dsn, "gitlab_schemas": ["gitlab_main"]}},
            },
        )

    primary = own.postgres.create_database(prefix)
    config = config_of(primary)
    settings = load_settings(config)
    with psycopg.connect(primary, autocommit=True) as connection:
        connection.execute(TABLE)
        park(connection, Feed(settings), settings, [77, 78])
        before = listed(command, config)
        standby = own.standby(prefix)
        try:
            # From here on the standby gets nothing: what the primary commits now is lost with it.
            standby.stop()
            assert done(command, config, "retry", NAME)["applied"] == 2
            assert listed(command, config) == []
            own.postgres.kill()
            standby.start()
            standby.promote()
            config = config_of(standby.dsn(prefix))
            with psycopg.connect(standby.dsn(prefix), autocommit=True) as promoted:
                assert written(promoted) == []
                assert listed(command, config) == before
                assert done(command, config, "retry", NAME)["applied"] == 2
                assert sorted(written(promoted)) == [77, 78]
                assert done(command, config, "retry", NAME)["applied"] == 0
                assert sorted(written(promoted)) == [77, 78]
                sums = promoted.execute("SELECT sum(applied), sum(parked) FROM headrace.progress").fetchone()
                assert sums == (2, 0)
        finally:
            standby.abandon()
