"""The publication: exactly the captured tables, every change of them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from producers.publication import PublishesAllTables, ensure_publication, published_tables
from producers.tables import CapturedTable, captured_tables
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


def test_it_is_made_once_and_follows_the_tables(connection: psycopg.Connection[Any]) -> None:
    both, one = tables(connection, "public.t", "public.u"), tables(connection, "public.u")
    assert published_tables(connection, NAME) is None
    assert ensure_publication(connection, NAME, both)
    assert published_tables(connection, NAME) == frozenset({"public.t", "public.u"})
    assert not ensure_publication(connection, NAME, both)
    assert ensure_publication(connection, NAME, one)
    assert published_tables(connection, NAME) == frozenset({"public.u"})
    assert not ensure_publication(connection, NAME, one)


OTHERS = {
    "fewer changes": "FOR TABLE ONLY t WITH (publish = 'insert')",
    "fewer columns": "FOR TABLE ONLY t (id)",
    "fewer rows": "FOR TABLE ONLY t WHERE (id > 1)",
    "what inherits from it": "FOR TABLE t",
}


def test_one_that_publishes_partitions_as_their_table_is_put_right(connection: psycopg.Connection[Any]) -> None:
    """It would tell neither a partition's replica identity nor its truncates."""
    connection.execute(f"CREATE PUBLICATION {NAME} FOR TABLE u, ONLY t WITH (publish_via_partition_root)".encode())
    assert published_tables(connection, NAME) == frozenset({"public.t"})
    assert ensure_publication(connection, NAME, tables(connection, "public.u"))
    assert published_tables(connection, NAME) == frozenset({"public.u"})


@pytest.mark.parametrize("kind", OTHERS)
def test_one_that_somebody_else_made_is_put_right(connection: psycopg.Connection[Any], kind: str) -> None:
    connection.execute(f"CREATE PUBLICATION {NAME} {OTHERS[kind]}".encode())
    assert published_tables(connection, NAME) != frozenset({"public.t"})
    assert ensure_publication(connection, NAME, tables(connection, "public.t"))
    assert published_tables(connection, NAME) == frozenset({"public.t"})


def test_one_for_all_tables_is_refused(connection: psycopg.Connection[Any]) -> None:
    connection.execute(f"CREATE PUBLICATION {NAME} FOR ALL TABLES".encode())
    with pytest.raises(PublishesAllTables, match=r"publication pub is one FOR ALL TABLES; Choose another"):
        ensure_publication(connection, NAME, tables(connection, "public.t"))
