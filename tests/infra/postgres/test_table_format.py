"""The format of headrace's tables: newer ones are refused, older ones upgraded atomically and once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql

from consumers.ledger import fence
from consumers.testing.waiting import until
from infra.postgres import control, heartbeat, table_format
from infra.postgres.control import control_sql, ensure_control_schema, owners
from infra.postgres.table_format import UpgradeWaits
from producers.switchover import endpoints
from schemas import formats
from schemas.errors import PreflightFailed
from schemas.formats import PROGRAM, NewerFormat
from tests.conftest import Database

pytestmark = pytest.mark.stack

STEP = "ALTER TABLE headrace.migrations ADD COLUMN note text NOT NULL DEFAULT 'upgraded'"


@pytest.fixture
def made(database: Database) -> psycopg.Connection:
    """A connection to a database whose tables the present version made."""
    connection = database.connect()
    ensure_control_schema(connection, "main", ["gitlab_main"])
    connection.execute("INSERT INTO headrace.migrations (name, gitlab_schema) VALUES ('mine', 'gitlab_main')")
    return connection


@pytest.fixture
def next_version(made: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process one whose tables have the next format, once the present version has made its own."""
    monkeypatch.setattr(formats, "TABLES", replace(formats.TABLES, version=formats.TABLES.version + 1))
    monkeypatch.setattr(table_format, "step_sql", lambda step: {formats.TABLES.version - 1: STEP}[step])


def recorded(connection: psycopg.Connection) -> object:
    return connection.execute("SELECT format, format_by FROM headrace.database").fetchone()


def notes(connection: psycopg.Connection) -> list[tuple[str]]:
    return connection.execute("SELECT note FROM headrace.migrations").fetchall()


def table_is_waited_for(connection: psycopg.Connection) -> bool:
    waits = "SELECT count(*) FROM pg_locks WHERE relation = 'headrace.migrations'::regclass AND NOT granted"
    return connection.execute(waits).fetchone() != (0,)


def prepare(connection: psycopg.Connection) -> None:
    ensure_control_schema(connection, "main", ["gitlab_main"])


def hold(connection: psycopg.Connection) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        fence.hold(cursor, migration="mine", run=1, gitlab_schema="gitlab_main", database="main")


def own(connection: psycopg.Connection) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        fence.own(cursor, gitlab_schema="gitlab_main", database="main")


def test_new_tables_have_the_present_format(made: psycopg.Connection) -> None:
    assert recorded(made) == (formats.TABLES.version, PROGRAM)
    assert f"format integer NOT NULL DEFAULT {formats.TABLES.version}" in control_sql()
    assert all(table_format.step_sql(step) for step in range(1, formats.TABLES.version))


@pytest.mark.parametrize(
    "act",
    [prepare, hold, own, heartbeat.beat, owners, control.database_name, lambda made: endpoints.side(made, "main")],
    ids=["start", "fence", "ownership", "heartbeat", "owners", "name", "switchover"],
)
def test_newer_tables_are_refused_by_every_reader(
    made: psycopg.Connection, act: Callable[[psycopg.Connection], object]
) -> None:
    act(made)
    newer = formats.TABLES.version + 1
    made.execute("UPDATE headrace.database SET format = %s, format_by = '9.1'", (newer,))
    with pytest.raises(NewerFormat, match=rf"has format {newer}, written by headrace 9\.1; this is headrace"):
        act(made)


@pytest.mark.usefixtures("next_version")
def test_older_tables_are_upgraded_once(made: psycopg.Connection, database: Database) -> None:
    starts = [threading.Thread(target=prepare, args=(database.connect(),)) for _ in range(3)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert recorded(made) == (formats.TABLES.version, PROGRAM)
    assert notes(made) == [("upgraded",)]
    hold(made)


def test_upgrade_waits_for_the_transaction_of_an_older_consumer_and_its_next_one_is_refused(
    made: psycopg.Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, watch = database.connect(), database.connect()
    version = formats.TABLES.version
    older.execute("BEGIN")
    fence.hold(older.cursor(), migration="mine", run=1, gitlab_schema="gitlab_main", database="main")
    with monkeypatch.context() as newer:
        newer.setattr(formats, "TABLES", replace(formats.TABLES, version=version + 1))
        newer.setattr(table_format, "step_sql", {version: STEP}.__getitem__)
        newer.setattr(table_format, "_SECONDS", "10min")
        start = threading.Thread(target=prepare, args=(database.connect(),))
        start.start()
        until(lambda: table_is_waited_for(watch), "the upgrade to wait")
        older.execute("UPDATE headrace.migrations SET run_reason = 'written meanwhile'")
        older.execute("COMMIT")
        start.join()
    assert made.execute("SELECT run_reason, note FROM headrace.migrations").fetchone() == (
        "written meanwhile",
        "upgraded",
    )
    with pytest.raises(NewerFormat):
        hold(older)


@pytest.mark.usefixtures("next_version")
def test_upgrade_yields_to_a_transaction_that_does_not_end(
    made: psycopg.Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_format, "_SECONDS", "50ms")
    before = recorded(made)
    with database.connect() as holder, holder.transaction():
        holder.execute("SELECT FROM headrace.migrations")
        with pytest.raises(UpgradeWaits, match="database main have format 1 and are in use"):
            prepare(database.connect())
    assert recorded(made) == before
    with pytest.raises(psycopg.errors.UndefinedColumn):
        notes(made)


@pytest.mark.usefixtures("next_version")
def test_upgrade_that_is_killed_has_changed_nothing(
    made: psycopg.Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = f"{STEP}; SELECT pg_terminate_backend(pg_backend_pid())"
    with monkeypatch.context() as killed:
        killed.setattr(table_format, "step_sql", lambda _: dying)
        with pytest.raises(psycopg.OperationalError):
            prepare(database.connect())
    assert recorded(made) == (formats.TABLES.version - 1, PROGRAM)
    prepare(made)
    assert notes(made) == [("upgraded",)]


@pytest.mark.usefixtures("next_version")
def test_role_that_does_not_own_the_tables_is_referred_to_the_administrators_script(
    made: psycopg.Connection, database: Database
) -> None:
    role = sql.Identifier(f"{database.name}_consumer")
    made.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    try:
        made.execute(sql.SQL("GRANT USAGE ON SCHEMA headrace TO {}").format(role))
        made.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA headrace TO {}").format(role))
        limited = database.connect()
        limited.execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(role))
        with pytest.raises(PreflightFailed, match="have an administrator run what `headrace init --sql` prints"):
            prepare(limited)
        for _ in range(2):
            for statement in table_format.statements():
                made.execute(statement)
        assert recorded(made) == (formats.TABLES.version, PROGRAM)
        prepare(limited)
        assert notes(limited) == [("upgraded",)]
    finally:
        made.execute(sql.SQL("DROP OWNED BY {}").format(role))
        made.execute(sql.SQL("DROP ROLE {}").format(role))
