from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from infra.postgres.control import (
    OtherPrefix,
    Owner,
    Ownership,
    WrongDatabase,
    control_sql,
    database_name,
    ensure_control_schema,
    ownership,
    recorded_prefix,
    require_name,
)
from schemas.errors import PreflightFailed
from tests.conftest import Database

pytestmark = pytest.mark.stack


def owners(connection: psycopg.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT gitlab_schema, owner FROM headrace.schema_ownership").fetchall())


def test_control_schema_is_created_named_and_claimed_idempotently(database: Database) -> None:
    connection = database.connect()
    assert database_name(connection) is None
    for _ in range(2):
        ensure_control_schema(connection, "main", ["gitlab_main", "gitlab_shared"])
    assert database_name(connection) == "main"
    assert owners(connection) == {"gitlab_main": "main", "gitlab_shared": "main"}


def test_what_a_database_records_about_itself_is_read_at_once(database: Database) -> None:
    connection = database.connect()
    with pytest.raises(psycopg.errors.UndefinedTable):
        ownership(connection)
    ensure_control_schema(connection, "main", [])
    assert ownership(connection) == Ownership("main", False, {})
    ensure_control_schema(connection, "main", ["gitlab_main", "gitlab_shared"])
    connection.execute(
        "UPDATE headrace.schema_ownership SET owner = 'ci', epoch = 2 WHERE gitlab_schema = 'gitlab_main'"
    )
    recorded = {"gitlab_main": Owner("ci", 2), "gitlab_shared": Owner("main", 1)}
    assert ownership(connection) == Ownership("main", False, recorded)
    require_name(connection, "main")
    with pytest.raises(WrongDatabase, match="call this database ci, but it is recorded as main"):
        require_name(connection, "ci")


def test_database_owns_the_gitlab_schemas_that_name_it_unless_it_is_a_standby() -> None:
    recorded = {"gitlab_main": Owner("main", 1), "gitlab_ci": Owner("ci", 2)}
    assert Ownership("main", False, recorded).owns("gitlab_main")
    for found, gitlab_schema in (
        (Ownership("main", True, recorded), "gitlab_main"),
        (Ownership("main", False, recorded), "gitlab_ci"),
        (Ownership("main", False, recorded), "gitlab_pm"),
        (Ownership("second", False, recorded), "gitlab_main"),
        (Ownership(None, False, recorded), "gitlab_main"),
    ):
        assert not found.owns(gitlab_schema)


def test_an_owned_gitlab_schema_keeps_its_owner(database: Database) -> None:
    connection = database.connect()
    ensure_control_schema(connection, "main", ["gitlab_main"])
    connection.execute("UPDATE headrace.schema_ownership SET owner = 'ci', epoch = 2")
    ensure_control_schema(connection, "main", ["gitlab_main"])
    assert owners(connection) == {"gitlab_main": "ci"}


def test_a_database_with_another_name_is_refused_and_left_alone(database: Database) -> None:
    connection = database.connect()
    ensure_control_schema(connection, "main", ["gitlab_main"])
    with pytest.raises(WrongDatabase, match="call this database ci, but it is recorded as main") as refused:
        ensure_control_schema(connection, "ci", ["gitlab_ci"])
    assert refused.value.exit_code == 3
    assert owners(connection) == {"gitlab_main": "main"}


def test_the_ledger_of_one_prefix_is_not_used_by_another(database: Database) -> None:
    """Its runs, pauses and completions are those of the topics that it speaks of."""
    connection = database.connect()
    ensure_control_schema(connection, "main", ["gitlab_main"], prefix="one")
    assert recorded_prefix(connection) == "one"
    with pytest.raises(OtherPrefix, match=r"main is used with prefix one, and the settings have two.*running\.md"):
        ensure_control_schema(connection, "main", ["gitlab_main", "gitlab_ci"], prefix="two")
    assert (recorded_prefix(connection), owners(connection)) == ("one", {"gitlab_main": "main"})
    ensure_control_schema(connection, "main", ["gitlab_main"], prefix="one")


def test_first_caller_sets_the_prefix_of_a_named_database(database: Database) -> None:
    connection = database.connect()
    assert recorded_prefix(connection) is None
    ensure_control_schema(connection, "main", ["gitlab_main"])
    assert recorded_prefix(connection) is None
    ensure_control_schema(connection, "main", ["gitlab_main"], prefix="one")
    assert recorded_prefix(connection) == "one"


def test_tables_of_another_version_are_refused_by_name(database: Database) -> None:
    connection = database.connect()
    ensure_control_schema(connection, "main", ["gitlab_main"])
    connection.execute("ALTER TABLE headrace.database DROP COLUMN prefix")
    with pytest.raises(PreflightFailed, match="in schema headrace of database main belong to another version"):
        ensure_control_schema(connection, "main", ["gitlab_main"], prefix="one")


def test_concurrent_callers_agree(database: Database) -> None:
    problems: list[BaseException] = []
    barrier = threading.Barrier(8)
    connections = [database.connect() for _ in range(8)]

    def run(connection: psycopg.Connection) -> None:
        try:
            barrier.wait(30)
            ensure_control_schema(connection, "main", ["gitlab_main"])
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert owners(connections[0]) == {"gitlab_main": "main"}


def test_one_row_names_the_database(database: Database) -> None:
    connection = database.connect()
    ensure_control_schema(connection, "main", [])
    with pytest.raises(psycopg.errors.IntegrityError):
        connection.execute("INSERT INTO headrace.database (only_row, name) VALUES (false, 'second')")
    with pytest.raises(psycopg.errors.IntegrityError):
        connection.execute("INSERT INTO headrace.database (name) VALUES ('second')")


@contextmanager
def plain_role(database: Database) -> Iterator[tuple[psycopg.Connection, sql.Identifier]]:
    """A connection as a role without any rights, and the role's name."""
    admin = database.connect()
    name = sql.Identifier(f"plain_{database.name}")
    admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    try:
        plain = database.connect()
        plain.execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(name))
        yield plain, name
        plain.close()
    finally:
        admin.execute(sql.SQL("DROP OWNED BY {}").format(name))
        admin.execute(sql.SQL("DROP ROLE {}").format(name))


def grant(admin: psycopg.Connection, name: sql.Identifier) -> None:
    admin.execute(sql.SQL("GRANT USAGE ON SCHEMA headrace TO {}").format(name))
    admin.execute(sql.SQL("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA headrace TO {}").format(name))


def test_role_without_privileges_gets_a_remedy_that_works(database: Database) -> None:
    admin = database.connect()
    with plain_role(database) as (plain, name):
        with pytest.raises(PreflightFailed, match="headrace init --sql"):
            ensure_control_schema(plain, "main", ["gitlab_main"])
        admin.execute(control_sql())
        grant(admin, name)
        ensure_control_schema(plain, "main", ["gitlab_main"])
        assert owners(admin) == {"gitlab_main": "main"}


OWN_TABLES = """
CREATE TABLE IF NOT EXISTS headrace.one (id bigint PRIMARY KEY);
CREATE TABLE IF NOT EXISTS headrace.two (id bigint PRIMARY KEY);
"""


def test_missing_own_tables_of_a_migration_are_created(database: Database) -> None:
    connection = database.connect()
    ensure_control_schema(connection, "main", ["gitlab_main"])
    for _ in range(2):
        ensure_control_schema(connection, "main", ["gitlab_main"], OWN_TABLES)
        connection.execute("DROP TABLE headrace.two")
    ensure_control_schema(connection, "main", ["gitlab_main"], OWN_TABLES)
    assert connection.execute("SELECT count(*) FROM headrace.one, headrace.two").fetchone() == (0,)


def test_existing_own_tables_need_no_create_privilege(database: Database) -> None:
    admin = database.connect()
    ensure_control_schema(admin, "main", ["gitlab_main"], OWN_TABLES)
    with plain_role(database) as (plain, name):
        grant(admin, name)
        ensure_control_schema(plain, "main", ["gitlab_main"], OWN_TABLES)
        admin.execute("DROP TABLE headrace.two")
        with pytest.raises(PreflightFailed, match="headrace init --sql"):
            ensure_control_schema(plain, "main", ["gitlab_main"], OWN_TABLES)
