"""Dead letters whose retry was lost with its session, or in a failover."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.commands.dead_letters_command import StillDeadLetters
from consumers.contract.decisions import Change
from consumers.contract.migration import Cursor
from consumers.delivery.dead_letter_rows import Busy
from consumers.testing.waiting import until
from infra.postgres.advisory_locks import lock_key
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.stack.postgresql.server import EmbeddedPostgres
from tests.conftest import Database
from tests.consumers.commands.letters import Unguarded
from tests.consumers.container_repositories import TABLE, Feed, write_settings, written
from tests.consumers.delivery.dead_letters import NAME, Command, Connection, done, listed, make_dead_letters
from tests.consumers.known_migrations import known_are
from tests.producers.servers import own_server

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("unguarded")]


class LosesItsSession(Unguarded):
    """Loses its connection once, at row 78, before the commit, and calls the test meanwhile."""

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
    known_are(monkeypatch, {NAME: LosesItsSession})


def test_settlement_lost_in_failover_during_retry_is_retried_immediately(
    command: Command,
    feed: Feed,
    connection: Connection,
    config: Path,
    settings: Settings,
    ledger: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_dead_letters(connection, feed, settings, range(70, 90))

    def fail_over(pid: int) -> None:
        # As on a standby that lacks the commits so far.
        connection.execute("UPDATE headrace.dead_letters SET settled_at = NULL WHERE settled_at IS NOT NULL")
        connection.execute(
            "UPDATE headrace.progress SET dead_letters = dead_letters + applied, applied = 0 WHERE applied > 0"
        )
        connection.execute("SELECT pg_terminate_backend(%s)", (pid,))

    losing(monkeypatch, fail_over)
    assert done(command, config, "retry", NAME)["applied"] == 20
    assert (ledger()["applied"], ledger()["dead_letters"], listed(command, config)) == (20, 0, [])


@pytest.mark.long
def test_retry_that_lost_its_session_stops_if_another_has_the_lock(
    command: Command,
    feed: Feed,
    connection: Connection,
    config: Path,
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_dead_letters(connection, feed, settings, range(70, 90))
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
    known_are(monkeypatch, {NAME: Unguarded})
    command(config, "retry", NAME)
    assert sorted(written(connection)) == list(range(70, 90))


@pytest.mark.long
def test_dead_letter_with_invisible_transaction_stays(
    command: Command, feed: Feed, connection: Connection, config: Path, settings: Settings
) -> None:
    row = connection.execute("SELECT (pg_current_xact_id()::text::bigint + 2000) % 4294967296").fetchone()
    assert row is not None
    # Without such a transaction it would be considered lost in a failover.
    feed.xid = row[0]
    make_dead_letters(connection, feed, settings, [77])
    connection.execute("BEGIN")
    while connection.execute("SELECT pg_current_xact_id()::text").fetchone() != (str(row[0]),):
        connection.execute("COMMIT")
        connection.execute("BEGIN")
    stays = command(config, "retry", NAME).exception
    assert isinstance(stays, StillDeadLetters)
    assert "its transaction is not visible yet" in str(stays)
    connection.execute("COMMIT")
    assert done(command, config, "retry", NAME)["applied"] == 1
    assert written(connection) == [77]


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedPostgres]:
    with own_server() as running:
        yield running


@pytest.mark.long
def test_dead_letter_whose_retry_was_lost_in_failover_is_retried(
    command: Command, own: EmbeddedPostgres, bootstrap_servers: str, prefix: str, tmp_path: Path
) -> None:
    def config_of(dsn: str) -> Path:
        return write_settings(
            tmp_path / "headrace.toml",
            {
                "prefix": prefix,
                "kafka": {"bootstrap_servers": bootstrap_servers},
                "databases": {"main": {"dsn": dsn, "gitlab_schemas": ["gitlab_main"]}},
            },
        )

    primary = own.create_database(prefix)
    config = config_of(primary)
    settings = load_settings(config)
    with psycopg.connect(primary, autocommit=True) as connection:
        connection.execute(TABLE)
        make_dead_letters(connection, Feed(settings), settings, [77, 78])
        before = listed(command, config)
        standby = own.standby(prefix)
        try:
            # From here on the standby receives nothing: later commits of the primary are lost with it.
            standby.stop()
            assert done(command, config, "retry", NAME)["applied"] == 2
            assert listed(command, config) == []
            own.kill()
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
                sums = promoted.execute("SELECT sum(applied), sum(dead_letters) FROM headrace.progress").fetchone()
                assert sums == (2, 0)
        finally:
            standby.abandon()
