"""headrace's publication never prevents the application from writing a captured table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.state.snapshot_requests import SnapshotRequest
from producers.session.resnapshot_request import ask
from producers.source import preflight
from producers.source.publication import ensure_publication, read_publication
from producers.source.tables import captured_tables
from producers.source.writability import refused_writes
from tests.conftest import Database
from tests.producers.folding import ops
from tests.producers.sources import OFTEN, Running, Source, database_section, running

pytestmark = pytest.mark.stack

NewSource = Callable[..., Source]
REFUSES = "PostgreSQL refuses every UPDATE and DELETE of it while it is published"

TABLES = """
CREATE TABLE whole (id int PRIMARY KEY, v text, twice int GENERATED ALWAYS AS (id * 2) STORED);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE indexed (id int PRIMARY KEY, v text, twice int GENERATED ALWAYS AS (id * 2) STORED NOT NULL);
CREATE UNIQUE INDEX indexed_by ON indexed (id, twice);
ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_by;
CREATE TABLE virtual (id int PRIMARY KEY, v text);
ALTER TABLE virtual REPLICA IDENTITY FULL;
CREATE TABLE bare (id int PRIMARY KEY, v text);
CREATE TABLE parts (id int NOT NULL UNIQUE, v text) PARTITION BY RANGE (id);
ALTER TABLE parts REPLICA IDENTITY FULL;
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (5);
ALTER TABLE parts_1 REPLICA IDENTITY FULL;
"""
NAMES = ("whole", "indexed", "virtual", "bare", "parts")
REMOVES = {
    "virtual": "ALTER TABLE virtual ADD thrice int GENERATED ALWAYS AS (id * 3) VIRTUAL",
    "bare": "ALTER TABLE bare REPLICA IDENTITY NOTHING",
    # A table attached as a partition has its own identity.
    "parts": "CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (5) TO (10); INSERT INTO parts VALUES (5, 'a')",
}


def writes(source: Source, table: str, value: str) -> bool:
    """Update and delete as the application does; return whether PostgreSQL allows it."""
    try:
        with source.connection.transaction():
            source.connection.execute(f"UPDATE {table} SET v = %s WHERE id <> 1".encode(), (value,))
            source.connection.execute(f"DELETE FROM {table} WHERE id = 1; INSERT INTO {table} VALUES (1)".encode())
    except (psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.InvalidColumnReference):
        return False
    return True


def stopped(source: Source, table: str) -> str:
    return source.state().snapshots[f"public.{table}"].stopped or ""


def is_stopped(source: Source, table: str) -> bool:
    return stopped(source, table) != ""


def require_captured(source: Source, table: str) -> None:
    """Fail unless the topic is the table, without the generated column, both read and streamed."""
    records = source.require_equal(f"public.{table}", ("id", "v"))
    rows = [row for record in records if record.event for row in (record.event.before, record.event.after) if row]
    assert all("twice" not in row for row in rows)
    assert ops(records, id=2) == ["r", "u", "u"]


@pytest.mark.long
def test_writes_continue_after_every_change_while_producer_runs(new_source: NewSource) -> None:
    source = new_source(
        TABLES + "".join(f"INSERT INTO {name} VALUES (1, 'a'), (2, 'b');" for name in NAMES),
        *(f"public.{name}" for name in NAMES),
        keys={"public.parts": ["id"]},
        timing=OFTEN,
    )
    with running(source) as producer:
        producer.caught_up()
        assert all(writes(source, name, "first") for name in NAMES)
        producer.caught_up()
        for change in REMOVES.values():
            source.connection.execute(change.encode())
        for table in REMOVES:
            until_checked(producer, partial(writes, source, table, "second"), f"{table} to be writable")
        for table in REMOVES:
            until_checked(producer, partial(is_stopped, source, table), f"{table} to be stopped")
        assert all(writes(source, name, "second") for name in NAMES)
        source.passes(producer.check)
        assert stopped(source, "virtual") == (
            f"its replica identity is full and includes virtual generated column thrice: {REFUSES}"
        )
        assert stopped(source, "bare").startswith("its replica identity leaves out ")
        assert stopped(source, "parts") == (
            f"the replica identity of its partition public.parts_2 leaves out every column: {REFUSES}"
        )
    for table in ("whole", "indexed"):
        require_captured(source, table)
    # The next start leaves them out; the remedy resolves it.
    with running(source) as producer:
        source.passes(producer.check)
        assert all(writes(source, name, "third") for name in NAMES)
        source.connection.execute("ALTER TABLE virtual REPLICA IDENTITY DEFAULT")
        ask(source.settings, "main", SnapshotRequest(table="public.virtual", from_scratch=True))
        until_checked(producer, lambda: stopped(source, "virtual") == "", "the re-snapshot")
        assert writes(source, "virtual", "fourth")
        source.passes(producer.check)
        until_checked(producer, lambda: source.state().snapshots["public.virtual"].done, "its copy")
    source.require_equal("public.virtual", ("id", "v"))


def until_checked(producer: Running, condition: Callable[[], bool], what: str) -> None:
    def met() -> bool:
        producer.check()
        return condition()

    until(met, what)


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    connection = database.connect()
    connection.execute(TABLES.encode())
    return connection


def found(connection: psycopg.Connection[Any], *tables: str, **more: Any) -> dict[str, str]:
    """Return problem → remedy of preflight's findings."""
    section = database_section(connection.info.dsn, *(f"public.{name}" for name in tables), **more)
    return {each.problem: each.remedy for each in preflight.findings(connection, "main", section, "no_slot", "p")}


def test_table_that_would_be_unwritable_is_refused_before_publishing(
    connection: psycopg.Connection[Any],
) -> None:
    keys = {"public.parts": ["id"]}
    assert found(connection, *NAMES, keys=keys) == {}
    for change in REMOVES.values():
        connection.execute(change.encode())
    connection.execute("ALTER TABLE bare REPLICA IDENTITY DEFAULT")
    problems = found(connection, *NAMES, keys=keys)
    assert sorted(problem.partition(":")[0] for problem in problems) == [
        "table public.parts",
        "table public.virtual",
    ]
    assert all(REFUSES in problem and "REPLICA IDENTITY" in remedy for problem, remedy in problems.items())
    connection.execute("CREATE TABLE k (id int, twice int GENERATED ALWAYS AS (id * 2) STORED PRIMARY KEY)")
    assert list(found(connection, "k")) == [
        "key column twice of table public.k is generated, and generated columns are not captured"
    ]


def test_publication_of_another_role_that_blocks_writes_is_refused(
    connection: psycopg.Connection[Any], database: Database
) -> None:
    role = f"r_{database.name}"
    connection.execute("CREATE PUBLICATION headrace FOR TABLE whole WITH (publish_via_partition_root = true)")
    connection.execute(f"CREATE ROLE {role} REPLICATION; GRANT SELECT ON whole TO {role}".encode())
    try:
        connection.execute(f"SET ROLE {role}".encode())
        (problem,) = found(connection, "whole")
        assert "includes generated column twice, which the publication of another role leaves out" in problem
        connection.execute("RESET ROLE; ALTER PUBLICATION headrace SET (publish_generated_columns = stored)")
        connection.execute(f"SET ROLE {role}".encode())
        assert found(connection, "whole") == {}
    finally:
        connection.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_own_publication_without_generated_columns_is_repaired(connection: psycopg.Connection[Any]) -> None:
    section = database_section(connection.info.dsn, "public.whole")
    tables = captured_tables(connection, "main", section, "p")
    connection.execute("CREATE PUBLICATION headrace FOR TABLE ONLY whole WITH (publish_via_partition_root = true)")
    connection.execute("INSERT INTO whole VALUES (1)")
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        connection.execute("DELETE FROM whole")
    assert refused_writes(connection, "headrace", [tables[0].relation.oid]) == {}
    assert ensure_publication(connection, "headrace", tables)
    connection.execute("DELETE FROM whole")
    publication = read_publication(connection, "headrace")
    assert publication is not None
    assert publication.generated
    assert not ensure_publication(connection, "headrace", tables)
