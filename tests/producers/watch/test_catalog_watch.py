"""Checks of captured tables against the catalog."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from infra.postgres.control import ensure_control_schema
from infra.service import log
from producers.publish.table_publisher import TableFeed, TableTopic
from producers.source.publication import ensure_publication
from producers.source.tables import captured_tables
from producers.watch.catalog_watch import TableWatch, tables_now
from schemas.positions import Lsn
from tests.conftest import Database
from tests.producers.captures import MemoryRegistry
from tests.producers.sources import settings_for

pytestmark = pytest.mark.stack

AWAY, BACK = "ALTER TABLE public.t SET SCHEMA other", "ALTER TABLE other.t SET SCHEMA public"


def test_column_never_checked_for_nulls_is_no_key(database: Database) -> None:
    connection = database.connect()
    connection.execute("CREATE TABLE t (id int PRIMARY KEY, name text UNIQUE); INSERT INTO t VALUES (1, NULL)")
    connection.execute("ALTER TABLE t ADD CONSTRAINT named NOT NULL name NOT VALID")
    oid, *_ = connection.execute("SELECT 't'::regclass::oid::bigint").fetchone() or (0,)
    assert tables_now(connection, None, [oid])[oid].unique == {frozenset({"id"})}
    connection.execute("UPDATE t SET name = 'a'; ALTER TABLE t VALIDATE CONSTRAINT named")
    assert tables_now(connection, None, [oid])[oid].unique == {frozenset({"id"}), frozenset({"name"})}


def interrupt(connection: psycopg.Connection[Any], other: psycopg.Connection[Any], upcoming: list[str]) -> None:
    """After each statement of a connection, run the next of `upcoming` on another one."""

    class Interrupted(psycopg.Cursor[Any]):
        def execute(self, *arguments: Any, **more: Any) -> Interrupted:
            super().execute(*arguments, **more)
            if upcoming:
                other.execute(upcoming.pop(0).encode())
            return self

    connection.cursor_factory = Interrupted


def run_rest(other: psycopg.Connection[Any], upcoming: list[str]) -> None:
    while upcoming:
        other.execute(upcoming.pop(0).encode())


def test_table_moved_and_back_during_check_counts_as_published(database: Database) -> None:
    """Its name at one moment is not among the publication's names at another."""
    connection, other = database.connect(), database.connect()
    other.execute("CREATE SCHEMA other; CREATE TABLE t (id int PRIMARY KEY)")
    settings = settings_for("none:9092", "p", database.dsn, "public.t")
    ensure_control_schema(connection, "main", settings.database("main").gitlab_schemas)
    (table,) = captured_tables(connection, "main", settings.database("main"), "p")
    watch = TableWatch(connection, "main", "headrace", log.get())
    upcoming: list[str] = []
    interrupt(connection, other, upcoming)
    told: set[str | None] = set()
    for statements in range(6):  # that come before it is moved
        ensure_publication(connection, "headrace", [table])
        upcoming[:] = [*[""] * statements, AWAY, BACK]
        now = watch.now(table.relation.oid)
        assert now is not None
        assert now.published, now.name
        run_rest(other, upcoming)
        upcoming[:] = [*[""] * statements, AWAY, BACK]
        feed = TableFeed("main", table, TableTopic(1), MemoryRegistry(), None, not_before=7)
        watch.look([feed])
        run_rest(other, upcoming)
        watch.noted(Lsn(1))
        watch.passed(Lsn(1))
        told.add(feed.state.stopped)
    assert told == {None, "it was renamed to other.t"}
