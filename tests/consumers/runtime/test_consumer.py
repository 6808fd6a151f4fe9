from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Message

from consumers.delivery.dead_letter_topic import REASON_HEADER
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.group_admin import members as group_members
from consumers.runtime.assembly import consumer_of
from consumers.runtime.totals import Totals
from consumers.testing.waiting import PATIENCE, until
from infra.kafka import clients
from infra.kafka.topics import LogReader
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.stack import Stack, embedded_stack
from schemas.errors import OwnershipMoved
from schemas.topics import dead_letters_topic, group_name
from tests.consumers.conftest import Member
from tests.consumers.container_repositories import (
    DEFAULT,
    TABLE,
    TOO_MANY_TAGS,
    Feed,
    fill,
    start_member,
    states,
    write_settings,
    written,
)
from tests.consumers.members.freezing import freeze_between_transactions, named

pytestmark = pytest.mark.stack

Ledger = Callable[[], Mapping[str, Any]]
CatchUp = Callable[..., Totals]
OTHER_REASON = ("import_skipped", 5)


def reason_of(dead_letters: Message) -> str:
    """Return why an event became a dead letter."""
    reason = dict(dead_letters.headers() or [])[REASON_HEADER]
    assert isinstance(reason, bytes)
    return reason.decode()


def mixed(count: int) -> dict[int, tuple[str, int | None]]:
    """Return rows, every third of which has to be reset."""
    kinds = (DEFAULT, TOO_MANY_TAGS, OTHER_REASON)
    return {key: kinds[key % 3] for key in range(count)}


def test_consumer_resets_each_row_once_and_counts_every_event(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: CatchUp, ledger: Ledger
) -> None:
    rows = mixed(3_000)
    fill(connection, rows)
    feed.snapshot(rows)

    totals = catch_up()

    assert totals.applied == 1_000
    assert totals.events == 3_000
    assert sorted(written(connection)) == [key for key, row in rows.items() if row == TOO_MANY_TAGS]
    counts = ledger()
    assert (counts["applied"], counts["skipped"], counts["dead_letters"]) == (1_000, 2_000, 0)


def test_many_skips_need_few_transactions(feed: Feed, connection: psycopg.Connection[Any], catch_up: CatchUp) -> None:
    feed.snapshot(dict.fromkeys(range(5000), DEFAULT))
    totals = catch_up()
    assert totals.skipped == 5_000
    assert totals.transactions <= 100


def test_aborted_transactions_are_skipped_and_ledger_reaches_the_end(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: CatchUp
) -> None:
    fill(connection, {1: TOO_MANY_TAGS, 2: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    feed.send([feed.upsert(2, *TOO_MANY_TAGS)], commit=False)
    assert catch_up().applied == 1
    assert catch_up().events == 0
    assert states(connection)[2] == TOO_MANY_TAGS


def test_restart_after_sigkill_applies_each_effect_once(
    feed: Feed,
    connection: psycopg.Connection[Any],
    members: Callable[..., Member],
    ledger: Ledger,
) -> None:
    rows = mixed(12_000)
    fill(connection, rows)
    feed.snapshot(rows)
    for share in (500, 1_500, 2_500):
        member = members()
        until(lambda share=share: len(written(connection)) >= share, f"{share} rows are written")  # type: ignore[misc]
        member.kill()
        member.wait()

    member = members(until_caught_up=True)
    _, problems = member.communicate(timeout=PATIENCE)

    assert member.returncode == 0, problems
    assert sorted(written(connection)) == [key for key, row in rows.items() if row == TOO_MANY_TAGS]
    counts = ledger()
    assert (counts["applied"], counts["skipped"]) == (4_000, 8_000)


@pytest.mark.long
def test_two_consumers_share_partitions_and_apply_each_row_once(
    feed: Feed,
    connection: psycopg.Connection[Any],
    members: Callable[..., Member],
    ready: Callable[[], bool],
) -> None:
    first, second = members(), members()
    workers = "SELECT count(DISTINCT member) FROM headrace.progress"
    until(lambda: ready() and connection.execute(workers).fetchone() == (2,), "both have partitions")
    rows = mixed(6_000)
    fill(connection, rows)
    feed.snapshot(rows)

    until(lambda: len(written(connection)) >= 2_000, "all are reset")

    third = members(until_caught_up=True)
    _, problems = third.communicate(timeout=PATIENCE)
    assert third.returncode == 0, problems
    for member in (first, second):
        member.send_signal(signal.SIGTERM)
        _, problems = member.communicate(timeout=PATIENCE)
        assert member.returncode == 0, problems
    assert sorted(written(connection)) == [key for key, row in rows.items() if row == TOO_MANY_TAGS]


@pytest.mark.long
def test_zombie_writes_nothing(
    feed: Feed,
    connection: psycopg.Connection[Any],
    members: Callable[..., Member],
    catch_up: CatchUp,
    settings: Settings,
) -> None:
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    zombie = members()
    until(lambda: written(connection) == [1], "the first row is reset")
    freeze_between_transactions(zombie, connection)
    group = group_name(settings.prefix, "skip_resets")
    until(lambda: group_members(settings.kafka, group) == [], "Kafka removes the stopped group member")
    rows = mixed(3_000)
    connection.execute("TRUNCATE container_repositories, writes")
    fill(connection, rows)
    feed.snapshot(rows)
    catch_up()
    connection.execute("UPDATE container_repositories SET migration_state = 'default'")
    connection.execute("TRUNCATE writes")
    connection.execute(
        "UPDATE container_repositories SET migration_state = 'import_skipped', migration_skipped_reason = 2"
    )
    before = len(written(connection))

    zombie.send_signal(signal.SIGCONT)
    until(lambda: named(zombie) in group_members(settings.kafka, group), "the zombie is back")
    feed.send([feed.upsert(2_999, *DEFAULT)])
    last = catch_up()

    zombie.send_signal(signal.SIGTERM)
    _, problems = zombie.communicate(timeout=PATIENCE)
    assert zombie.returncode == 0, problems
    assert last.applied == 0
    assert len(written(connection)) == before


def test_consumer_without_ownership_writes_nothing(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: CatchUp, ledger: Ledger
) -> None:
    catch_up()
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    connection.execute("UPDATE headrace.schema_ownership SET owner = 'ci', epoch = 2")
    with pytest.raises(OwnershipMoved, match="gitlab_main is owned by ci, not by main"):
        catch_up()
    assert written(connection) == []
    assert ledger()["next"] == 0


def test_poison_row_becomes_dead_letter_and_others_are_applied(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: CatchUp, ledger: Ledger, settings: Settings
) -> None:
    connection.execute("ALTER TABLE container_repositories ADD CHECK (id <> 77 OR migration_state <> 'default')")
    rows = dict.fromkeys(range(200), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)

    catch_up()

    assert sorted(written(connection)) == [key for key in rows if key != 77]
    assert ledger()["dead_letters"] == 1
    (dead_letters,) = LogReader(settings.kafka, dead_letters_topic(settings.prefix, "skip_resets")).read()
    reason = reason_of(dead_letters)
    assert reason.startswith("23514 CheckViolation constraint container_repositories_")
    assert str(dead_letters.key()).startswith(f"b'main/{feed.topic}/")


def test_undecodable_events_and_unknown_schemas_become_dead_letters(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: CatchUp, ledger: Ledger, settings: Settings
) -> None:
    fill(connection, {1: TOO_MANY_TAGS})
    key, value = feed.upsert(1, *TOO_MANY_TAGS)
    feed.send(
        [
            (b"a", b"nonsense"),
            (b"b", b"\0\0\0\xff\xff" + value[5:]),
            (b"c", value.partition(b"import_skipped")[0] + b"import_skipped"),
            (key, value),
        ]
    )

    assert catch_up().applied == 1

    assert ledger()["dead_letters"] == 3
    dead_letters = LogReader(settings.kafka, dead_letters_topic(settings.prefix, "skip_resets")).read()
    reasons = sorted(map(reason_of, dead_letters))
    assert any("schema id 65535 is not in the registry" in reason for reason in reasons)
    assert any("wire format" in reason for reason in reasons)


def test_consumer_waits_for_topic_that_does_not_exist_yet(
    settings: Settings,
    connection: psycopg.Connection[Any],
    members: Callable[..., Member],
    ready: Callable[[], bool],
) -> None:
    member = members()
    until(ready, "it is up")
    fill(connection, {1: TOO_MANY_TAGS})
    Feed(settings).snapshot({1: TOO_MANY_TAGS})
    until(lambda: written(connection) == [1], "the row is reset")
    member.send_signal(signal.SIGINT)
    _, problems = member.communicate(timeout=PATIENCE)
    assert member.returncode == 0, problems


def test_paused_migration_waits_in_group_and_resumes(
    feed: Feed,
    connection: psycopg.Connection[Any],
    members: Callable[..., Member],
    settings: Settings,
    catch_up: CatchUp,
) -> None:
    catch_up()
    connection.execute("UPDATE headrace.migrations SET paused = true")
    fill(connection, {1: TOO_MANY_TAGS})
    feed.snapshot({1: TOO_MANY_TAGS})
    member = members()
    group = group_name(settings.prefix, "skip_resets")
    until(lambda: group_members(settings.kafka, group) == [named(member)], "it is in the group")
    assert written(connection) == []
    connection.execute("UPDATE headrace.migrations SET paused = false")
    until(lambda: written(connection) == [1], "the row is reset")
    assert member.poll() is None


def test_recreated_topic_is_refused(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: CatchUp, settings: Settings
) -> None:
    feed.snapshot({1: DEFAULT})
    catch_up()
    admin = clients.admin(settings.kafka)
    admin.delete_topics([feed.topic])[feed.topic].result(PATIENCE)
    until(lambda: feed.topic not in admin.list_topics(timeout=PATIENCE).topics, "the topic is gone")
    Feed(settings).snapshot(dict.fromkeys(range(100), DEFAULT))
    with pytest.raises(Exception, match=r"deleted and recreated.*headrace replay"):
        catch_up()


@pytest.mark.long
def test_consumer_survives_restarts_of_database_and_broker(tmp_path: Path, prefix: str) -> None:
    with embedded_stack(fsync=False) as own:
        _restart_both(own, tmp_path, prefix)


def _restart_both(own: Stack, tmp_path: Path, prefix: str) -> None:
    dsn = own.postgres.create_database("restarts")
    config = write_settings(
        tmp_path / "own.toml",
        {
            "prefix": prefix,
            "kafka": {"bootstrap_servers": own.endpoints.bootstrap_servers},
            "databases": {"main": {"dsn": dsn, "gitlab_schemas": ["gitlab_main"]}},
            "migrations": {"skip_resets": {"batch_size": 500, "sub_batch_size": 5}},
        },
    )
    rows = mixed(9_000)
    expected = [key for key, row in rows.items() if row == TOO_MANY_TAGS]

    def resets() -> list[int]:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                return sorted(written(connection))
        except psycopg.OperationalError:
            return []

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TABLE)
        fill(connection, rows)
    Feed(load_settings(config)).snapshot(rows)
    member = start_member(config)
    try:
        until(lambda: len(resets()) >= 1, "the first rows are reset")
        own.postgres.kill()
        own.postgres.start()
        until(lambda: len(resets()) >= 1_500, "it continues after the database crashed")
        own.kafka.restart()
        until(lambda: len(resets()) >= len(expected), "it continues after the broker was restarted")
        assert resets() == expected
        member.send_signal(signal.SIGTERM)
        _, problems = member.communicate(timeout=PATIENCE)
        assert member.returncode == 0, problems
        assert "Traceback" not in problems
    finally:
        member.kill()
        member.communicate()


class DiesAfterWriting(SkipResets):
    """Fails once, after its writes and before the ledger advances."""

    died = False

    def apply(self, cursor: psycopg.Cursor[Any], changes: Any) -> int:
        applied = super().apply(cursor, changes)
        if not self.died:
            self.died = True
            cursor.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return applied


def test_connection_lost_after_writes_loses_nothing(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings
) -> None:
    rows = mixed(300)
    fill(connection, rows)
    feed.snapshot(rows)
    migration = DiesAfterWriting.configure(settings.migration("skip_resets"))
    totals = consumer_of(settings, migration, "main", stopping=threading.Event(), until_caught_up=True).run()
    assert totals.applied == 100
    assert sorted(written(connection)) == [key for key, row in rows.items() if row == TOO_MANY_TAGS]


def test_idle_consumer_reapplies_commits_lost_in_failover(
    settings: Settings, feed: Feed, connection: psycopg.Connection[Any], ledger: Ledger
) -> None:
    """Its last commits are not durable: effects and ledger are lost together, and only the new session shows it."""
    fill(connection, dict.fromkeys(range(100), TOO_MANY_TAGS))
    feed.snapshot(dict.fromkeys(range(50), TOO_MANY_TAGS))
    stopping = threading.Event()
    member = consumer_of(settings, SkipResets.configure(settings.migration("skip_resets")), "main", stopping=stopping)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(member.run)
        try:
            until(lambda: ledger()["applied"] == 50, "half is done")
            standby = connection.execute("SELECT topic, partition, next_offset FROM headrace.progress").fetchall()
            feed.snapshot(dict.fromkeys(range(50, 100), TOO_MANY_TAGS))
            until(lambda: ledger()["applied"] == 100, "all is done")
            with connection.transaction():
                # As on a standby that lacks the last transactions.
                for topic, partition, offset in standby:
                    connection.execute(
                        "UPDATE headrace.progress SET next_offset = %s WHERE topic = %s AND partition = %s",
                        (offset, topic, partition),
                    )
                connection.execute(
                    "UPDATE container_repositories SET migration_state = 'import_skipped', migration_skipped_reason = 2"
                    " WHERE id >= 50"
                )
                connection.execute("TRUNCATE writes")
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'headrace consume%' AND datname = current_database()"
                )
            until(lambda: sorted(written(connection)) == list(range(50, 100)), "they are applied again")
            assert not running.done()
        finally:
            stopping.set()
