"""Captured tables and their keys; every refusal names the table and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from producers.source.table_keys import UnusableKey
from producers.source.tables import (
    CapturedTable,
    IncompleteIdentity,
    MissingTable,
    PartitionTwice,
    UnfollowedPartition,
    UnusableName,
    captured_tables,
    comparable_key,
)
from schemas.errors import Refused
from schemas.gitlab_schemas import UnmappedTable
from tests.conftest import Database
from tests.producers.sources import database_section

pytestmark = pytest.mark.stack


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    return database.connect()


def captured(connection: psycopg.Connection[Any], *tables: str, **more: Any) -> tuple[CapturedTable, ...]:
    section = database_section(connection.info.dsn, *tables, **more)
    return captured_tables(connection, "main", section, "p")


def test_captured_table_has_topic_key_and_columns(connection: psycopg.Connection[Any]) -> None:
    connection.execute("CREATE TABLE t (a text, g int GENERATED ALWAYS AS (1) STORED, id int PRIMARY KEY)")
    (table,) = captured(connection, "public.t")
    assert (table.name, table.topic, table.gitlab_schema) == ("public.t", "p.gitlab_main.t", "gitlab_main")
    assert (table.key, table.ordered, table.partitioned) == (("id",), True, False)
    assert [column.name for column in table.relation.columns] == ["a", "id"]


def test_pattern_captures_matching_tables(connection: psycopg.Connection[Any]) -> None:
    connection.execute("CREATE TABLE ci_a (id int PRIMARY KEY); CREATE TABLE ci_b (id int PRIMARY KEY);")
    connection.execute("CREATE TABLE other (id int PRIMARY KEY)")
    mapped = {"public.ci_a": "gitlab_ci", "public.ci_b": "gitlab_ci"}
    tables = captured(connection, "public.ci_*", "public.ci_a", table_schemas=mapped)
    assert [table.name for table in tables] == ["public.ci_a", "public.ci_b"]


def test_table_upserts_by_name_or_pattern_and_has_whole_old_rows_by_its_identity(
    connection: psycopg.Connection[Any],
) -> None:
    connection.execute(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); ALTER TABLE b REPLICA IDENTITY FULL;"
        " CREATE TABLE c (id int PRIMARY KEY) PARTITION BY RANGE (id); ALTER TABLE c REPLICA IDENTITY FULL;"
        " CREATE TABLE c1 PARTITION OF c FOR VALUES FROM (1) TO (5);"
    )
    tables = captured(connection, "public.a", "public.b", "public.c", upsert_tables=("public.a", "*.c*"))
    assert [table.upserts for table in tables] == [True, False, True]
    assert [table.whole_old_rows for table in tables] == [False, True, False]
    connection.execute("ALTER TABLE c1 REPLICA IDENTITY FULL")
    assert captured(connection, "public.c")[0].whole_old_rows
    with pytest.raises(MissingTable, match=r"main\.upsert_tables names public\.b, but no such table is captured"):
        captured(connection, "public.a", upsert_tables=("public.b",))


REFUSALS: dict[str, tuple[str, dict[str, Any], type[Refused], str]] = {
    "missing": (
        "SELECT 1",
        {},
        MissingTable,
        r"databases\.main\.tables names public\.t, but the database has no such ordinary table; Create it",
    ),
    "a view": ("CREATE VIEW t AS SELECT 1 AS id", {}, MissingTable, "no such ordinary table"),
    "unlogged": ("CREATE UNLOGGED TABLE t (id int PRIMARY KEY)", {}, MissingTable, "no such ordinary table"),
    "unmapped": (
        "CREATE TABLE t (id int PRIMARY KEY)",
        {"table_schemas": {}},
        UnmappedTable,
        r'no gitlab schema is known for table public\.t; add "public\.t" = .*table_schemas',
    ),
    "no key": (
        "CREATE TABLE t (id int)",
        {},
        UnusableKey,
        r"table public\.t has neither a primary key nor a replica identity index; give it a primary key,"
        r" name unique not-null columns in databases\.main\.keys, or leave it out of databases\.main\.tables",
    ),
    "a key that is no column": (
        "CREATE TABLE t (id int PRIMARY KEY)",
        {"keys": {"public.t": ["nme"]}},
        UnusableKey,
        r"databases\.main\.keys names column nme, which table public\.t does not have",
    ),
    "a key that is not unique": (
        "CREATE TABLE t (id int PRIMARY KEY, name text NOT NULL); CREATE INDEX ON t (name)",
        {"keys": {"public.t": ["name"]}},
        UnusableKey,
        r"the key \(name\) of table public\.t has no unique index over NOT NULL columns",
    ),
    "a key that may be null": (
        "CREATE TABLE t (id int PRIMARY KEY, name text UNIQUE)",
        {"keys": {"public.t": ["name"]}},
        UnusableKey,
        "no unique index over NOT NULL columns",
    ),
    "a key that was never checked for nulls": (
        "CREATE TABLE t (id int PRIMARY KEY, name text UNIQUE); INSERT INTO t VALUES (1, NULL);"
        "ALTER TABLE t ADD CONSTRAINT named NOT NULL name NOT VALID; ALTER TABLE t REPLICA IDENTITY FULL",
        {"keys": {"public.t": ["name"]}},
        UnusableKey,
        r"key column name of table public\.t has a NOT NULL constraint that is NOT VALID.*"
        r'ALTER TABLE public\.t VALIDATE CONSTRAINT "named"',
    ),
    "a key that is unique for some rows": (
        "CREATE TABLE t (id int PRIMARY KEY, name text NOT NULL); CREATE UNIQUE INDEX ON t (name) WHERE id > 1",
        {"keys": {"public.t": ["name"]}},
        UnusableKey,
        "no unique index over NOT NULL columns",
    ),
    "a key that may be doubled for a moment": (
        "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE); ALTER TABLE t REPLICA IDENTITY FULL",
        {},
        UnusableKey,
        r"\(a deferrable constraint's does not count\)",
    ),
    "a key that deletes don't tell": (
        "CREATE TABLE t (id int PRIMARY KEY, name text NOT NULL UNIQUE)",
        {"keys": {"public.t": ["name"]}},
        IncompleteIdentity,
        r"the replica identity of table public\.t leaves out key column name; Run ALTER TABLE",
    ),
    "deletes that tell nothing": (
        "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING",
        {},
        IncompleteIdentity,
        "leaves out key column id",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_unusable_tables_are_refused(connection: psycopg.Connection[Any], case: str) -> None:
    ddl, more, kind, words = REFUSALS[case]
    connection.execute(ddl.encode())
    with pytest.raises(kind, match=words) as caught:
        captured(connection, "public.t", **more)
    assert caught.value.exit_code == 3


def test_partition_is_refused_next_to_its_captured_root(connection: psycopg.Connection[Any]) -> None:
    connection.execute("CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    connection.execute("CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (9)")
    with pytest.raises(PartitionTwice, match=r"table public\.t_1 is a partition of public\.t, which is captured too"):
        captured(connection, "public.t", "public.t_1")
    assert [table.name for table in captured(connection, "public.t_1")] == ["public.t_1"]
    assert [table.partitioned for table in captured(connection, "public.t")] == [True]


def test_schema_name_with_dot_is_refused(connection: psycopg.Connection[Any]) -> None:
    """Its table could share the qualified name, and so the topic, of another one."""
    connection.execute(
        'CREATE SCHEMA "a.b"; CREATE SCHEMA a; CREATE TABLE "a.b".t (id int PRIMARY KEY);'
        'CREATE TABLE a."b.t" (id int PRIMARY KEY); CREATE TABLE a.t (id int PRIMARY KEY)'
    )
    for pattern in ("a.b.t", "a.*"):
        with pytest.raises(UnusableName, match=r"table a\.b\.t is in schema a\.b, whose name has a dot; Rename it"):
            captured(connection, pattern)
    assert [table.name for table in captured(connection, "a.t", table_schemas={"a.t": "gitlab_main"})] == ["a.t"]


def test_a_table_is_refused_for_a_partition_that_cannot_be_followed(connection: psycopg.Connection[Any]) -> None:
    """The partition's own replica identity counts."""
    connection.execute("CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL) PARTITION BY RANGE (id)")
    connection.execute("CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (9)")
    connection.execute("CREATE UNIQUE INDEX i ON t_1 (v)")
    connection.execute("ALTER TABLE t REPLICA IDENTITY NOTHING")
    (table,) = captured(connection, "public.t")
    assert [each.name for each in table.partitions.by_oid.values()] == ["public.t_1"]
    connection.execute("ALTER TABLE t_1 REPLICA IDENTITY USING INDEX i")
    with pytest.raises(
        UnfollowedPartition, match=r"table public\.t cannot .* partition public\.t_1 leaves out key column id"
    ):
        captured(connection, "public.t")
    connection.execute("ALTER TABLE t_1 REPLICA IDENTITY FULL")
    connection.execute("ALTER TABLE t_1 SET UNLOGGED")
    with pytest.raises(UnfollowedPartition, match=r"its partition public\.t_1 is unlogged"):
        captured(connection, "public.t")


@pytest.fixture
def role(connection: psycopg.Connection[Any], database: Database) -> Iterator[str]:
    """The name of a role without privileges."""
    name = f"r_{database.name}"
    connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    yield name
    connection.execute(f"DROP OWNED BY {name}")
    connection.execute(f"DROP ROLE {name}")


def test_unreadable_table_is_hidden(connection: psycopg.Connection[Any], database: Database, role: str) -> None:
    connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with psycopg.connect(make_conninfo(database.dsn, user=role, password="x")) as other:
        (hidden,) = captured(other, "public.t")
        assert str(hidden.hidden).startswith("table public.t may not be read by this role; GRANT SELECT ON public.t")
        connection.execute(f"GRANT SELECT ON t TO {role}")
        (shown,) = captured(other, "public.t")
        assert shown.hidden is None


def test_table_with_row_security_is_hidden(connection: psycopg.Connection[Any], database: Database, role: str) -> None:
    connection.execute("CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    connection.execute(f"GRANT SELECT ON t TO {role}")
    with psycopg.connect(make_conninfo(database.dsn, user=role, password="x")) as other:
        (hidden,) = captured(other, "public.t")
        assert str(hidden.hidden) == (
            "table public.t has row security, which hides rows from this role; give the role of the dsn BYPASSRLS"
        )


KEYS = {
    "int": ("id int PRIMARY KEY", True),
    "two, in the index's order": ("id int, b bigint, PRIMARY KEY (b, id)", True),
    "uuid": ("id uuid PRIMARY KEY", True),
    "text in byte order": ('id text COLLATE "C" PRIMARY KEY', True),
    "varchar in byte order": ('id varchar(9) COLLATE "POSIX" PRIMARY KEY', True),
    "text in another order": ("id text PRIMARY KEY", False),
    "blank-padded": ('id char(9) COLLATE "C" PRIMARY KEY', False),
    "numeric": ("id numeric PRIMARY KEY", False),
}


@pytest.mark.parametrize("kind", KEYS)
def test_comparable_keys_are_recognized(connection: psycopg.Connection[Any], kind: str) -> None:
    columns, ordered = KEYS[kind]
    connection.execute(f"CREATE TABLE t ({columns})".encode())
    (table,) = captured(connection, "public.t")
    assert table.ordered == ordered


def test_row_order_is_that_of_the_unique_index(connection: psycopg.Connection[Any]) -> None:
    connection.execute('CREATE TABLE t (id text NOT NULL); CREATE UNIQUE INDEX one ON t (id COLLATE "C")')
    connection.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX one")
    (table,) = captured(connection, "public.t")
    assert (table.key, table.ordered) == (("id",), True)
    assert [(each.collation, each.collated) for each in table.order] == [(("pg_catalog", "C"), True)]


def test_a_covering_index_has_the_columns_before_its_include(connection: psycopg.Connection[Any]) -> None:
    connection.execute("CREATE TABLE t (id int, name text, PRIMARY KEY (id) INCLUDE (name))")
    (table,) = captured(connection, "public.t")
    assert (table.key, table.relation.identity_columns) == (("id",), ("id",))


def test_configured_key_with_matching_identity_is_accepted(connection: psycopg.Connection[Any]) -> None:
    connection.execute("CREATE TABLE t (id int PRIMARY KEY, name text NOT NULL UNIQUE)")
    connection.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    (table,) = captured(connection, "public.t", keys={"public.t": ["name"]})
    assert (table.key, table.relation.identity_columns) == (("name",), ("id", "name"))


def test_keys_sort_as_the_database_sorts_them(connection: psycopg.Connection[Any]) -> None:
    connection.execute('CREATE TABLE t (a text COLLATE "C", b int, PRIMARY KEY (a, b))')
    (table,) = captured(connection, "public.t")
    texts = [("b", 2), ("B", 10), ("b", -1), ("é", 0), ("", 5), ("b", 10)]
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO t VALUES (%s, %s)", texts)
        rows = cursor.execute("SELECT a, b::text FROM t ORDER BY a, t.b").fetchall()
    keys = [comparable_key(table, (a.encode(), b.encode())) for a, b in rows]
    assert keys == sorted(keys)
    assert len(keys) == 6
