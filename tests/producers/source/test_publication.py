"""The publication: exactly the captured tables, every change of them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from infra.postgres.control import ensure_control_schema
from producers.source.publication import (
    Publication,
    PublishesAllTables,
    edited,
    ensure_publication,
    published_tables,
    read_publication,
    replaced,
)
from producers.source.tables import CapturedTable, captured_tables
from tests.conftest import Database
from tests.producers.sources import database_section

pytestmark = pytest.mark.stack

NAME = "pub"


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    connection = database.connect()
    connection.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE child () INHERITS (t)")
    connection.execute("CREATE TABLE u (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    connection.execute("CREATE TABLE u_1 PARTITION OF u FOR VALUES FROM (0) TO (9)")
    return connection


def tables(connection: psycopg.Connection[Any], *names: str) -> tuple[CapturedTable, ...]:
    return captured_tables(connection, "main", database_section(connection.info.dsn, *names), "p")


def test_publication_is_created_once_and_follows_tables(connection: psycopg.Connection[Any]) -> None:
    both, one = tables(connection, "public.t", "public.u"), tables(connection, "public.u")
    assert published_tables(connection, NAME) is None
    assert ensure_publication(connection, NAME, both)
    assert published_tables(connection, NAME) == frozenset({"public.t", "public.u"})
    assert not ensure_publication(connection, NAME, both)
    assert ensure_publication(connection, NAME, one)
    assert published_tables(connection, NAME) == frozenset({"public.u"})
    assert not ensure_publication(connection, NAME, one)


def test_table_is_added_although_schema_of_others_may_not_be_used(connection: psycopg.Connection[Any]) -> None:
    """The role owns them all but lost USAGE on a schema: tables published there stay published."""
    role, database = f"r_{connection.info.dbname}", connection.info.dbname
    connection.execute(
        f"CREATE ROLE {role}; GRANT CREATE ON DATABASE {database} TO {role}; SET ROLE {role};"
        "CREATE SCHEMA hidden; CREATE TABLE hidden.a (id int PRIMARY KEY); CREATE TABLE hidden.b (id int PRIMARY KEY);"
        "CREATE SCHEMA seen; CREATE TABLE seen.c (id int PRIMARY KEY);"
        " CREATE TABLE seen.d (id int PRIMARY KEY)".encode()
    )
    try:
        ensure_publication(connection, NAME, tables(connection, "hidden.a", "hidden.b", "seen.d"))
        connection.execute(f"ALTER PUBLICATION {NAME} ADD TABLE seen.c (id)".encode())
        wanted = tables(connection, "hidden.a", "seen.c")
        version = published(connection).tables["hidden.a"]
        connection.execute(f"REVOKE USAGE ON SCHEMA hidden FROM {role}".encode())
        assert ensure_publication(connection, NAME, wanted)
        after = published(connection).tables
        assert after.keys() == {"hidden.a", "hidden.b", "seen.c"}
        assert after["hidden.a"] == version
        connection.execute(f"GRANT USAGE ON SCHEMA hidden TO {role}".encode())
        assert ensure_publication(connection, NAME, wanted)
        assert published(connection).tables.keys() == {"hidden.a", "seen.c"}
    finally:
        connection.execute(f"RESET ROLE; DROP OWNED BY {role} CASCADE; DROP ROLE {role}".encode())


def published(connection: psycopg.Connection[Any]) -> Publication:
    found = read_publication(connection, NAME)
    assert found is not None
    return found


OTHERS = {
    "fewer changes": "FOR TABLE ONLY t WITH (publish = 'insert')",
    "fewer columns": "FOR TABLE ONLY t (id)",
    "fewer rows": "FOR TABLE ONLY t WHERE (id > 1)",
    "what inherits from it": "FOR TABLE t",
}


@pytest.mark.parametrize("other", ["", ", publish_generated_columns = stored"])
def test_publication_via_root_is_repaired(connection: psycopg.Connection[Any], other: str) -> None:
    """Its stream would lack a partition's replica identity and truncates."""
    connection.execute(
        f"CREATE PUBLICATION {NAME} FOR TABLE u, ONLY t WITH (publish_via_partition_root{other})".encode()
    )
    assert published_tables(connection, NAME) == frozenset({"public.t"})
    assert ensure_publication(connection, NAME, tables(connection, "public.u"))
    assert published_tables(connection, NAME) == frozenset({"public.u"})


@pytest.mark.parametrize("kind", OTHERS)
def test_publication_created_by_another_program_is_repaired(connection: psycopg.Connection[Any], kind: str) -> None:
    connection.execute(f"CREATE PUBLICATION {NAME} {OTHERS[kind]}".encode())
    assert published_tables(connection, NAME) != frozenset({"public.t"})
    assert ensure_publication(connection, NAME, tables(connection, "public.t"))
    assert published_tables(connection, NAME) == frozenset({"public.t"})


EDITS = {
    "its kinds of changes": ("SET (publish = 'insert')", "SET (publish = 'insert, update, delete, truncate')"),
    "the owners' table": ("DROP TABLE headrace.schema_ownership", "ADD TABLE ONLY headrace.schema_ownership"),
}


def test_reverted_edit_is_detected_and_correct_publication_is_unchanged(connection: psycopg.Connection[Any]) -> None:
    ensure_control_schema(connection, "main", ["gitlab_main"])
    both, one = tables(connection, "public.t", "public.u"), tables(connection, "public.t")
    ensure_publication(connection, NAME, one)
    recorded = publication(connection).tables["public.t"]
    ensure_publication(connection, NAME, both)
    ensure_publication(connection, NAME, one)
    connection.execute("VACUUM FULL pg_publication_rel")
    assert edited(recorded, "public.t", publication(connection)) is None
    for edit in EDITS.values():
        for statement in edit:
            connection.execute(f"ALTER PUBLICATION {NAME} {statement}".encode())
        assert replaced(recorded, publication(connection)) == "was altered"
        recorded = publication(connection).tables["public.t"]
    connection.execute("ALTER PUBLICATION pub DROP TABLE ONLY t; ALTER PUBLICATION pub ADD TABLE ONLY t")
    assert replaced(recorded, publication(connection)) is None
    assert edited(recorded, "public.t", publication(connection)) is not None


def publication(connection: psycopg.Connection[Any]) -> Publication:
    found = read_publication(connection, NAME)
    assert found is not None
    return found


def test_a_partition_and_its_root_are_both_published(connection: psycopg.Connection[Any]) -> None:
    leaf = tables(connection, "public.u_1")
    ensure_publication(connection, NAME, leaf)
    connection.execute("ALTER PUBLICATION pub ADD TABLE u")
    assert published_tables(connection, NAME) == frozenset({"public.u", "public.u_1"})
    assert ensure_publication(connection, NAME, leaf)
    assert published_tables(connection, NAME) == frozenset({"public.u_1"})


def test_publication_for_all_tables_is_refused(connection: psycopg.Connection[Any]) -> None:
    connection.execute(f"CREATE PUBLICATION {NAME} FOR ALL TABLES".encode())
    with pytest.raises(PublishesAllTables, match=r"publication pub is FOR ALL TABLES; Choose another"):
        ensure_publication(connection, NAME, tables(connection, "public.t"))
