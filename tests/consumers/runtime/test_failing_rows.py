"""A row that cannot be applied becomes a dead letter; a statement that fails for every row does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import psycopg
import pytest

from consumers.contract.decisions import Decision
from consumers.dead_letters.settle import retry
from consumers.delivery.dead_letter_topic import read_dead_letters_topic
from consumers.migrations.skip_resets import SkipResets
from consumers.runtime.assembly import consumer_of
from consumers.testing.waiting import PATIENCE, until
from infra.settings.model import Settings
from schemas.errors import HeadraceError
from schemas.events import ChangeEvent
from tests.conftest import Database
from tests.consumers.container_repositories import DEFAULT, TOO_MANY_TAGS, Feed, fill, written

pytestmark = pytest.mark.stack

Ledger = Callable[[], Mapping[str, Any]]
ROWS = dict.fromkeys(range(60), TOO_MANY_TAGS)
BAD = 7


def trigger(body: str, when: str = f"NEW.id = {BAD}", how: str = "TRIGGER poison BEFORE UPDATE") -> str:
    return (
        f"CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {when} THEN {body}; END IF;"
        f" RETURN NEW; END $$;"
        f" CREATE {how} ON container_repositories {'DEFERRABLE INITIALLY DEFERRED' if 'CONSTRAINT' in how else ''}"
        " FOR EACH ROW EXECUTE FUNCTION poison()"
    )


def raised(sqlstate: str) -> str:
    return f"RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'"


POISONS = {
    "a code of its own": (raised("GL001"), "GL001"),
    "missing right, raised": (raised("42501"), "42501 InsufficientPrivilege"),
    "shutdown, raised": (raised("57P01"), "57P01"),
    "lost connection, raised": (raised("08006"), "08006"),
    "read-only, raised": (raised("25006"), "25006"),
    "disk full, raised": (raised("53100"), "53100"),
    "lock, raised": (raised("55P03"), "55P03"),
    "serialization failure": (raised("40001"), "40001 SerializationFailure"),
    "undefined column": ("PERFORM nope FROM public.writes", "42703 UndefinedColumn"),
    "undefined function": ("PERFORM nope(1)", "42883 UndefinedFunction"),
    "not in a transaction": ("EXECUTE 'CREATE DATABASE nope'", "25001 ActiveSqlTransaction"),
    "internal": ("PERFORM pg_catalog.pg_describe_object(1, 1, 1)", "XX000"),
}


@pytest.mark.parametrize(("body", "reason"), POISONS.values(), ids=POISONS)
def test_row_that_fails_alone_becomes_dead_letter_and_others_are_applied(
    body: str,
    reason: str,
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: Callable[..., Any],
    settings: Settings,
    ledger: Ledger,
) -> None:
    connection.execute(trigger(body))
    fill(connection, ROWS)
    feed.snapshot(ROWS)
    catch_up()
    assert sorted(written(connection)) == [key for key in ROWS if key != BAD]
    assert ledger()["dead_letters"] == 1
    (entry,) = read_dead_letters_topic(settings, "skip_resets")
    assert entry.reason.startswith(reason)
    # Retried, it stays a dead letter, without delay.
    migration = SkipResets.configure(settings.migration("skip_resets"))
    assert list(retry(settings, migration, "main", [entry.name], threading.Event()).stays) == [entry.name]


@pytest.mark.long
@pytest.mark.parametrize("limit", ["statement_timeout", "transaction_timeout"])
def test_row_that_times_out_alone_becomes_dead_letter(
    limit: str,
    feed: Feed,
    connection: psycopg.Connection[Any],
    database: Database,
    catch_up: Callable[..., Any],
    ledger: Ledger,
) -> None:
    connection.execute(trigger("PERFORM pg_sleep(600)"))
    fill(connection, ROWS)
    feed.snapshot(ROWS)
    connection.execute(f"ALTER DATABASE {database.name} SET {limit} = '1500ms'")
    catch_up()
    assert sorted(written(connection)) == [key for key in ROWS if key != BAD]
    assert ledger()["dead_letters"] == 1


def test_row_that_fails_at_commit_becomes_dead_letter(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], ledger: Ledger
) -> None:
    connection.execute(trigger("PERFORM nope FROM public.writes", how="CONSTRAINT TRIGGER poison AFTER UPDATE"))
    fill(connection, ROWS)
    feed.snapshot(ROWS)
    catch_up()
    assert sorted(written(connection)) == [key for key in ROWS if key != BAD]
    assert ledger()["dead_letters"] == 1


WHOLESALE = {
    "no column": "ALTER TABLE container_repositories DROP COLUMN migration_skipped_reason",
    "a trigger's bug": trigger("PERFORM nope FROM public.writes", when="true"),
    "a trigger's bug at the commit": trigger(
        "PERFORM nope FROM public.writes", when="true", how="CONSTRAINT TRIGGER poison AFTER UPDATE"
    ),
    "no ledger": "DO $$ BEGIN EXECUTE 'ALTER TABLE headrace.progress DROP COLUMN skip_reasons CASCADE'; END $$",
}


@pytest.mark.parametrize("sql", WHOLESALE.values(), ids=WHOLESALE)
def test_statement_that_fails_for_every_row_stops_without_dead_letters(
    sql: str,
    feed: Feed,
    connection: psycopg.Connection[Any],
    catch_up: Callable[..., Any],
    settings: Settings,
    ledger: Ledger,
) -> None:
    catch_up()
    fill(connection, ROWS)
    feed.snapshot(ROWS)
    connection.execute(sql)
    with pytest.raises(
        HeadraceError, match=r"database main: the migration's SQL does not match .*42703.*; compare the table"
    ):
        catch_up()
    assert written(connection) == []
    assert read_dead_letters_topic(settings, "skip_resets") == []
    assert ledger()["dead_letters"] == 0


def test_failing_row_without_other_rows_stops_until_others_arrive(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], ledger: Ledger
) -> None:
    connection.execute(trigger("PERFORM nope FROM public.writes"))
    fill(connection, ROWS)
    feed.snapshot({BAD: TOO_MANY_TAGS})
    with pytest.raises(HeadraceError, match="42703 UndefinedColumn"):
        catch_up()
    assert ledger()["dead_letters"] == 0
    feed.snapshot({key: row for key, row in ROWS.items() if key != BAD})
    catch_up()
    assert ledger()["dead_letters"] == 1
    assert sorted(written(connection)) == [key for key in ROWS if key != BAD]


def test_failing_row_without_other_rows_becomes_dead_letter_after_retries(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], ledger: Ledger
) -> None:
    connection.execute(trigger(raised("40001")))
    fill(connection, ROWS)
    feed.snapshot({BAD: TOO_MANY_TAGS})
    catch_up()
    assert ledger()["dead_letters"] == 1


def test_consumer_waits_for_server_too_slow_for_every_row(
    feed: Feed,
    connection: psycopg.Connection[Any],
    database: Database,
    settings: Settings,
    ledger: Ledger,
) -> None:
    connection.execute(trigger("PERFORM pg_sleep(600)", when="true"))
    fill(connection, ROWS)
    feed.snapshot(ROWS)
    connection.execute(f"ALTER DATABASE {database.name} SET statement_timeout = '500ms'")
    stopping, tried = threading.Event(), []

    class Tries(SkipResets):
        """Counts the attempts for a single row."""

        def apply(self, cursor: Any, changes: Any) -> int:
            if len(changes) == 1:
                tried.append(changes[0].key)
            return super().apply(cursor, changes)

    runtime = consumer_of(
        settings, Tries.configure(settings.migration("skip_resets")), "main", stopping=stopping, until_caught_up=True
    )
    problems: list[BaseException] = []

    def run() -> None:
        try:
            runtime.run()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: len(set(tried)) > 3 or problems, "other rows were tried too")
        assert ledger()["dead_letters"] == 0
        connection.execute("DROP TRIGGER poison ON container_repositories")
        until(lambda: len(written(connection)) == len(ROWS) or problems, "all are applied")
        assert problems == []
        assert ledger()["dead_letters"] == 0
    finally:
        stopping.set()
        thread.join(PATIENCE)


def test_table_changed_under_prepared_statement_is_retried(
    feed: Feed,
    connection: psycopg.Connection[Any],
    settings: Settings,
    ledger: Ledger,
) -> None:
    class ReturnsAll(SkipResets):
        """Has a statement whose result type depends on the table's columns."""

        def apply(self, cursor: Any, changes: Any) -> int:
            cursor.execute(
                "UPDATE public.container_repositories SET migration_state = 'default', migration_skipped_reason = NULL"
                " WHERE id = ANY(%s) AND migration_state = 'import_skipped' RETURNING *",
                ([change.key for change in changes],),
                prepare=True,
            )
            return int(cursor.rowcount)

    stopping = threading.Event()
    problems: list[BaseException] = []

    def run() -> None:
        try:
            consumer_of(
                settings, ReturnsAll.configure(settings.migration("skip_resets")), "main", stopping=stopping
            ).run()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for key in (1, 2):
            fill(connection, {key: TOO_MANY_TAGS})
            feed.snapshot({key: TOO_MANY_TAGS})
            until(lambda key=key: written(connection)[-1:] == [key] or problems, f"{key} is written")  # type: ignore[misc]
            connection.execute(f"ALTER TABLE container_repositories ADD COLUMN more_{key} integer")
        fill(connection, {3: TOO_MANY_TAGS})
        feed.snapshot({3: TOO_MANY_TAGS})
        until(lambda: written(connection)[-1:] == [3] or problems, "it continues")
    finally:
        stopping.set()
        thread.join(PATIENCE)
    assert problems == []
    assert written(connection) == [1, 2, 3]
    assert ledger()["dead_letters"] == 0


@pytest.mark.parametrize("every", [1, 3])
def test_rows_already_up_to_date_are_no_evidence(
    every: int, feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], ledger: Ledger
) -> None:
    """As in a replay: no trigger runs for them, even a broken one."""
    connection.execute(trigger("PERFORM nope FROM public.writes", when="true"))
    fill(connection, {key: TOO_MANY_TAGS if key >= 200 and key % every == 0 else DEFAULT for key in range(300)})
    feed.snapshot(dict.fromkeys(range(300), TOO_MANY_TAGS))
    with pytest.raises(HeadraceError, match="42703 UndefinedColumn"):
        catch_up()
    assert ledger()["dead_letters"] == 0


def test_evidence_justifies_only_one_dead_letter(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], ledger: Ledger
) -> None:
    """If a privilege is lost midway, at most one change becomes a dead letter."""
    connection.execute(trigger("PERFORM nope FROM public.writes", when="(SELECT count(*) FROM public.writes) >= 3"))
    fill(connection, ROWS)
    feed.snapshot(ROWS)
    with pytest.raises(HeadraceError, match="42703 UndefinedColumn"):
        catch_up()
    assert ledger()["dead_letters"] <= 1
    assert len(written(connection)) < len(ROWS)


def test_change_rejected_only_in_its_own_transaction_becomes_dead_letter(
    feed: Feed, connection: psycopg.Connection[Any], settings: Settings, ledger: Ledger
) -> None:
    """As when the commit itself fails: tried out and rolled back, the change succeeds."""

    class RefusedWhenCommitted(SkipResets):
        """Fails unless it is tried out; no other rows were applied before it."""

        def apply(self, cursor: Any, changes: Any) -> int:
            if any(change.key == BAD for change in changes):
                if len(changes) == 1:
                    self.alone += 1
                if len(changes) > 1 or self.alone % 2 == 1:
                    cursor.execute("SELECT nope FROM public.writes")
            return super().apply(cursor, changes)

        alone = 0

    fill(connection, ROWS)
    feed.snapshot({BAD: TOO_MANY_TAGS})
    feed.snapshot({key: row for key, row in ROWS.items() if key != BAD})
    migration = RefusedWhenCommitted.configure(settings.migration("skip_resets"))
    consumer_of(settings, migration, "main", stopping=threading.Event(), until_caught_up=True).run()
    assert len(written(connection)) + ledger()["dead_letters"] == len(ROWS)
    assert ledger()["dead_letters"] <= 1


class DecidesSlowly(SkipResets):
    """Records whether `decide` was called concurrently, and by several threads."""

    deciding = threading.Lock()
    overlapped = False
    threads: ClassVar[set[int]] = set()

    def decide(self, event: ChangeEvent) -> Decision:
        self.threads.add(threading.get_ident())
        if not self.deciding.acquire(blocking=False):
            type(self).overlapped = True
            return super().decide(event)
        try:
            # Makes the fault likely to show, if it is there; without it nothing depends on this.
            time.sleep(0.003)
            return super().decide(event)
        finally:
            self.deciding.release()


def test_decide_is_never_called_concurrently(
    feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Any], settings: Settings
) -> None:
    connection.execute(trigger(raised("GL001")))
    fill(connection, ROWS)
    feed.snapshot(ROWS)
    DecidesSlowly.overlapped = False
    DecidesSlowly.threads.clear()
    catch_up(migration=DecidesSlowly.configure(settings.migration("skip_resets")))
    # The prefetch thread, and the one that replans rejected sub-batches.
    assert len(DecidesSlowly.threads) == 2
    assert not DecidesSlowly.overlapped
