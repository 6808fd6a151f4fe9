"""A migration fails if most of its changes cannot be applied, and then writes no more dead letters."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg
import pytest

from consumers.contract.decisions import DeadLetter
from consumers.dead_letters.settle import discard, read_dead_letters, retry
from consumers.delivery.dead_letter_topic import read_dead_letters_topic
from consumers.ledger.target import Target
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.pauses import set_paused
from consumers.operations.replay import replay
from consumers.operations.status import gather
from consumers.runtime.assembly import consumer_of
from consumers.runtime.circuit_breaker import CircuitBreaker
from consumers.testing.waiting import PATIENCE, until
from infra.postgres.control import ensure_control_schema
from infra.settings.model import Settings
from schemas.errors import HeadraceError
from tests.conftest import Database
from tests.consumers.conftest import Member
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill, states, written

pytestmark = pytest.mark.stack

Ledger = Callable[[], Mapping[str, Any]]
REFUSE_ALL = "ALTER TABLE container_repositories ADD CONSTRAINT refused CHECK (migration_state <> 'default') NOT VALID"
FAILED = (
    r"skip_resets has failed: \d+ of \d+ changes of run 1 could not be applied and became dead letters;"
    r" .*headrace resume"
)


def failed(connection: psycopg.Connection[Any]) -> str | None:
    row = connection.execute("SELECT failed FROM headrace.migrations").fetchone()
    return row[0] if row else None


def state(settings: Settings) -> str:
    (found,) = (one for one in gather(settings)["migrations"] if one["name"] == "skip_resets")
    return str(found["state"])


def test_migration_fails_when_every_change_is_rejected_and_leaves_remaining_events(
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: Callable[..., Any],
    ledger: Ledger,
    settings: Settings,
) -> None:
    connection.execute(REFUSE_ALL)
    rows = dict.fromkeys(range(400), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)

    with pytest.raises(HeadraceError, match=FAILED) as raised:
        catch_up()
    assert raised.value.exit_code == 1
    dead_letters = ledger()["dead_letters"]
    assert 26 <= dead_letters <= 60
    assert len(read_dead_letters_topic(settings, "skip_resets")) == dead_letters
    assert state(settings) == "failed"

    before = ledger()
    with pytest.raises(HeadraceError, match=FAILED):  # a consumer started after the failure does no work
        catch_up()
    assert ledger() == before
    assert len(read_dead_letters_topic(settings, "skip_resets")) == dead_letters


@pytest.mark.long
def test_services_of_failed_migration_wait_in_group_until_resume(
    feed: Feed,
    connection: psycopg.Connection[Any],
    members: Callable[..., Member],
    ready: Callable[[], bool],
    ledger: Ledger,
    settings: Settings,
) -> None:
    connection.execute(REFUSE_ALL)
    running = [members(), members()]
    workers = "SELECT count(DISTINCT member) FROM headrace.progress"
    until(lambda: ready() and connection.execute(workers).fetchone() == (2,), "both have partitions")
    rows = dict.fromkeys(range(400), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    until(lambda: failed(connection) is not None, "the migration has failed")
    dead_letters = ledger()["dead_letters"]
    assert dead_letters <= 100, "at most the running transactions of each"

    connection.execute("ALTER TABLE container_repositories DROP CONSTRAINT refused")
    connection.execute("ALTER TABLE container_repositories ADD CHECK (id <> 100_000 OR migration_state <> 'default')")
    set_paused(settings, SkipResets, "main", False)
    until(lambda: len(written(connection)) >= 400 - ledger()["dead_letters"] > 0, "the others are reset")
    assert ledger()["dead_letters"] <= dead_letters + 20
    # Earlier failures are not counted again: one more does not fail it.
    before = ledger()["dead_letters"]
    fill(connection, {100_000: TOO_MANY_TAGS})
    feed.snapshot({100_000: TOO_MANY_TAGS})
    until(lambda: ledger()["dead_letters"] == before + 1, "one more becomes a dead letter")
    fill(connection, {7_777: TOO_MANY_TAGS})
    feed.snapshot({7_777: TOO_MANY_TAGS})
    until(lambda: 7_777 in written(connection), "it continues")
    assert failed(connection) is None

    for member in running:
        member.send_signal(signal.SIGTERM)
    logs = [member.communicate(timeout=PATIENCE)[1] for member in running]
    assert [member.returncode for member in running] == [0, 0], logs
    assert "has failed" in "".join(logs), "an idle consumer may not have noticed"


def test_run_with_retried_dead_letters_can_fail_again(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], settings: Settings, ledger: Ledger
) -> None:
    """Changes counted before a failure do not count towards the next one."""
    connection.execute(REFUSE_ALL)
    rows = dict.fromkeys(range(50), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    with pytest.raises(HeadraceError, match=FAILED):
        catch_up()
    connection.execute("ALTER TABLE container_repositories DROP CONSTRAINT refused")
    set_paused(settings, SkipResets, "main", False)
    migration = SkipResets.configure(settings.migration("skip_resets"))
    assert retry(settings, migration, "main", [], threading.Event()).applied == 50
    connection.execute(REFUSE_ALL)
    rows = dict.fromkeys(range(1_000, 1_090), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    with pytest.raises(HeadraceError, match=FAILED):
        catch_up()
    assert ledger()["dead_letters"] <= 90
    assert failed(connection) is not None


def test_migration_does_not_fail_below_the_minimum_of_changes(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], ledger: Ledger
) -> None:
    connection.execute(REFUSE_ALL)
    rows = dict.fromkeys(range(40), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    catch_up()
    assert ledger()["dead_letters"] == 40
    assert failed(connection) is None


def test_dead_letters_from_decide_count_as_failures(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], settings: Settings, ledger: Ledger
) -> None:
    class RejectsAll(SkipResets):
        """Decides every event as a dead letter."""

        def decide(self, event: Any) -> DeadLetter:  # noqa: ARG002 - a contract fixes the names
            return DeadLetter("not understood")

    rows = dict.fromkeys(range(400), TOO_MANY_TAGS)
    feed.snapshot(rows)
    with pytest.raises(HeadraceError, match=FAILED):
        catch_up(migration=RejectsAll.configure(settings.migration("skip_resets")))
    assert ledger()["dead_letters"] < 100


def test_replay_restarts_the_count_and_retry_needs_a_resume(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], settings: Settings
) -> None:
    connection.execute(REFUSE_ALL)
    rows = dict.fromkeys(range(200), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    with pytest.raises(HeadraceError, match=FAILED):
        catch_up()
    connection.execute("ALTER TABLE container_repositories DROP CONSTRAINT refused")
    migration = SkipResets.configure(settings.migration("skip_resets"))
    entries = read_dead_letters(settings, migration, "main")
    with pytest.raises(HeadraceError, match=FAILED):
        retry(settings, migration, "main", [], threading.Event())
    assert discard(settings, migration, "main", entries[:1], threading.Event()).discarded == 1

    replay(settings, SkipResets, "main")
    assert state(settings) == "waiting"
    catch_up()
    assert {row for row, _ in states(connection).values()} == {"default"}
    assert failed(connection) is None


def test_failure_is_reported_at_the_end_of_the_topics(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings, ledger: Ledger
) -> None:
    connection.execute(REFUSE_ALL)
    rows = dict.fromkeys(range(50), TOO_MANY_TAGS)
    fill(connection, rows)
    feed.snapshot(rows)
    migration = SkipResets.configure(settings.migration("skip_resets"))
    with pytest.raises(HeadraceError, match=FAILED):
        consumer_of(settings, migration, "main", stopping=threading.Event(), until_caught_up=True).run()
    assert ledger()["dead_letters"] == 50


@pytest.fixture
def target(database: Database, connection: psycopg.Connection[Any]) -> Iterator[Target]:
    ensure_control_schema(connection, "main", ["gitlab_main"])
    connection.execute("INSERT INTO headrace.migrations (name, gitlab_schema) VALUES ('m', 'gitlab_main')")
    made = Target(database.dsn, database="main", migration="m", stopping=threading.Event(), wait=threading.Event().wait)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("applied", "guarded", "skipped", "dead_letters", "fails"),
    [
        (24, 0, 0, 26, True),
        (25, 0, 0, 25, False),
        (0, 24, 0, 26, True),
        (0, 25, 0, 25, False),
        (0, 0, 0, 49, False),
        (0, 0, 10_000, 50, True),
        (23, 0, 10_000, 26, False),
        (10_000, 0, 0, 10_001, True),
    ],
)
def test_migration_fails_above_half_of_tried_changes(
    target: Target,
    connection: psycopg.Connection[Any],
    applied: int,
    guarded: int,
    skipped: int,
    dead_letters: int,
    fails: bool,
) -> None:
    connection.execute(
        "INSERT INTO headrace.progress (migration, run, topic, partition, topic_id, applied, skipped, dead_letters,"
        " skip_reasons)"
        " VALUES ('m', 1, 't', 0, 'i', %s, %s, %s,"
        " jsonb_build_object('already up to date', %s::int, 'deleted', %s::int)),"
        " ('m', 1, 't', 1, 'i', 0, 0, 0, '{}'), ('m', 2, 't', 1, 'i', 0, 0, 500, '{}')",
        (applied, guarded + skipped, dead_letters, guarded, skipped),
    )
    breaker = CircuitBreaker("m", target, None, ends=True)  # type: ignore[arg-type]
    breaker.look(1)
    assert (failed(connection) is not None) is fails
    breaker.look(1)
    rows = connection.execute("SELECT tried, dead_letters FROM headrace.failures").fetchall()
    assert rows == ([(applied + guarded + dead_letters, dead_letters)] if fails else [])
