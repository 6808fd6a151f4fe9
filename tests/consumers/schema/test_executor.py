"""A table in use is altered without blocking other sessions, and a killed release is completed by the next."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql

from consumers.contract.backfill import BackfillOptions
from consumers.migrations.status_backfills import StatusBackfills
from consumers.schema.executor import Alterations, Done, LockNotGranted, RowsForbidThis
from consumers.schema.plan import NOT_NULL, Found, OutOfOrder, Release, Step, expanded
from consumers.testing.waiting import PATIENCE, until
from infra.postgres.advisory_locks import exclude, ownership_key
from infra.postgres.control import ensure_control_schema
from schemas.errors import Interrupted, OwnershipMoved, PreflightFailed, Refused
from tests.conftest import Database
from tests.consumers.registry import TABLE, insert, insert_with_status

pytestmark = pytest.mark.stack

LENGTH, REQUIRED = (StatusBackfills.constraint(check) for check in ("length", NOT_NULL))
PARTITIONED = """
    CREATE TABLE public.repositories (top_level_namespace_id bigint, id bigint, name text, path text,
                                      PRIMARY KEY (top_level_namespace_id, id))
        PARTITION BY HASH (top_level_namespace_id);
    CREATE TABLE public.part_0 PARTITION OF public.repositories FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE public.part_1 PARTITION OF public.repositories FOR VALUES WITH (MODULUS 2, REMAINDER 1)
        PARTITION BY HASH (id);
    CREATE TABLE public.part_1_0 PARTITION OF public.part_1 FOR VALUES WITH (MODULUS 1, REMAINDER 0);
"""


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    """A connection to a registry that `main` owns, with the table before the releases."""
    opened = database.connect()
    ensure_control_schema(opened, "main", ["registry"])
    opened.execute(TABLE)
    return opened


class Recording(psycopg.Cursor[Any]):
    """Records the ALTER TABLEs that are sent."""

    altered: list[str]

    def execute(self, query: Any, *arguments: Any, **named: Any) -> Any:
        text = query.as_string(None) if isinstance(query, sql.Composable) else str(query)
        if "ALTER TABLE" in text:
            self.altered.append(text)
        return super().execute(query, *arguments, **named)


class Bench:
    """Alterations over their own connection, whose ALTER TABLEs are recorded."""

    def __init__(self, database: Database, kind: type[Alterations] = Alterations, **options: Any) -> None:
        self.stopping = threading.Event()
        self.connection = database.connect()
        self.altered: list[str] = []
        self.connection.cursor_factory = type("Cursor", (Recording,), {"altered": self.altered})
        migration = StatusBackfills(BackfillOptions(**options))
        self.alterations = kind(self.connection, migration, "main", stopping=self.stopping)

    def __call__(self, release: Release) -> list[Done]:
        return self.alterations.carry_out(release)


@contextmanager
def reading(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """A transaction that has read the table and does not end."""
    reader = database.connect(autocommit=False)
    reader.execute("SET application_name = 'report'")
    reader.execute("SELECT count(*) FROM repositories")
    try:
        yield reader
    finally:
        reader.rollback()


def test_alter_is_not_tried_while_a_long_reader_holds_the_table(
    database: Database, connection: psycopg.Connection[Any]
) -> None:
    seen: list[str] = []

    class Counting(Alterations):
        def _held_by(self) -> str:
            if blocked_by := super()._held_by():
                seen.append(blocked_by)
            return blocked_by

    bench = Bench(database, Counting, lock_timeout_ms=20)
    with ThreadPoolExecutor(1) as pool:
        with reading(database):
            expanding = pool.submit(bench, Release.EXPAND)
            until(lambda: len(seen) > 1, "it found the table in use twice")
            insert(connection, [(1, 1)])
            assert bench.altered == []
        done = expanding.result(PATIENCE)
    assert done[0].tries > 1
    assert len(bench.altered) == 3


class Blind(Alterations):
    """Never finds a lock holder, as if each came just after the check."""

    def _held_by(self) -> str:
        return ""


def test_alter_waits_for_a_later_reader_no_longer_than_the_timeout(
    database: Database, connection: psycopg.Connection[Any]
) -> None:
    bench = Bench(database, Blind, lock_timeout_ms=50)
    with ThreadPoolExecutor(1) as pool:
        with reading(database):
            expanding = pool.submit(bench, Release.EXPAND)
            # The server cancels: the second try shows that the first waited no longer.
            until(lambda: len(bench.altered) > 1, "the lock was not granted, and the statement was retried")
            insert(connection, [(1, 1)])
        done = expanding.result(PATIENCE)
    assert done[0].tries > 1
    assert len(set(bench.altered)) == 3


def test_timed_out_release_reports_lock_holder_and_next_one_resumes(
    database: Database, connection: psycopg.Connection[Any]
) -> None:
    bench = Bench(database, lock_timeout_ms=1, patience_seconds=0.01)
    with reading(database) as reader:
        with pytest.raises(LockNotGranted, match=rf"locked for .* by process {reader.info.backend_pid} \(report\)"):
            bench(Release.EXPAND)
        assert bench.altered == []
    assert len(Bench(database)(Release.EXPAND)) == 3


def test_validate_does_not_wait_for_readers_or_writers(database: Database, connection: psycopg.Connection[Any]) -> None:
    connection.execute("ALTER TABLE repositories ADD COLUMN migration_status text")
    connection.execute(f"ALTER TABLE repositories ADD CONSTRAINT {LENGTH} CHECK (true) NOT VALID")
    bench = Bench(database)
    with reading(database) as busy:
        insert(busy, [(1, 1)])
        assert [each.tries for each in bench(Release.EXPAND)] == [1]


def test_expand_does_not_rewrite_the_table(database: Database, connection: psycopg.Connection[Any]) -> None:
    insert(connection, [(1, 1), (1, 2)])
    before = connection.execute("SELECT ctid, xmin, id FROM repositories ORDER BY id").fetchall()
    Bench(database)(Release.EXPAND)
    assert connection.execute("SELECT ctid, xmin, id FROM repositories ORDER BY id").fetchall() == before


@pytest.mark.parametrize("release", [Release.EXPAND, Release.CONTRACT])
@pytest.mark.parametrize("killed_after", range(3))
def test_killed_release_is_completed_by_the_next(
    database: Database, connection: psycopg.Connection[Any], release: Release, killed_after: int
) -> None:
    if release is Release.CONTRACT:
        Bench(database)(Release.EXPAND)

    class Dies(Alterations):
        def _execute(self, step: Step) -> None:
            if len(bench.altered) == killed_after:
                raise KeyboardInterrupt
            super()._execute(step)

    bench = Bench(database, Dies)
    statements = 3 if release is Release.EXPAND else 2
    if killed_after < statements:
        with pytest.raises(KeyboardInterrupt):
            bench(release)
    else:
        bench(release)
    assert len(Bench(database)(release)) == statements - killed_after
    found = Bench(database).alterations.found()
    assert expanded(StatusBackfills, found)
    assert found.checks.get(REQUIRED) == ([] if release is Release.CONTRACT else None)
    assert Bench(database)(release) == []


def test_concurrent_releases_alter_once(database: Database, connection: psycopg.Connection[Any]) -> None:
    benches = [Bench(database, Blind) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda bench: bench(Release.EXPAND), benches))
    assert expanded(StatusBackfills, benches[0].alterations.found())
    assert sum(len(done) for done in outcomes) >= 3
    assert connection.execute("SELECT count(*) FROM pg_constraint WHERE conname = %s", (LENGTH,)).fetchone() == (1,)


def test_contract_finds_row_written_while_it_waits_for_its_lock(
    database: Database, connection: psycopg.Connection[Any]
) -> None:
    Bench(database)(Release.EXPAND)

    class WaitsOnce(Alterations):
        """Is not granted its lock at first, and an application writes meanwhile."""

        def _execute(self, step: Step) -> None:
            insert(connection, [(1, 1)])
            raise psycopg.errors.LockNotAvailable(step.what)

    bench = Bench(database, WaitsOnce)
    with pytest.raises(OutOfOrder, match=r"1 rows of public\.repositories have no migration_status"):
        bench(Release.CONTRACT)
    assert bench.altered == []


def test_row_that_violates_a_check_is_reported_without_its_values(
    database: Database, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("ALTER TABLE repositories ADD COLUMN migration_status text")
    insert_with_status(connection, {(1, 1): "secret" * 50})
    with pytest.raises(RowsForbidThis, match=f"rows of public.repositories violate {LENGTH}") as refused:
        Bench(database)(Release.EXPAND)
    assert "secret" not in str(refused.value)


def test_database_without_ownership_is_not_altered(database: Database, connection: psycopg.Connection[Any]) -> None:
    bench = Bench(database)
    connection.execute("UPDATE headrace.schema_ownership SET owner = 'elsewhere', epoch = epoch + 1")
    for release in Release:
        with pytest.raises(OwnershipMoved, match="owned by elsewhere, not by main"):
            bench(release)
    assert bench.altered == []


def test_alterations_stop_when_ownership_is_lost(database: Database, connection: psycopg.Connection[Any]) -> None:
    class Moved(Alterations):
        def _held_by(self) -> str:
            if bench.altered:
                connection.execute("UPDATE headrace.schema_ownership SET owner = 'elsewhere', epoch = epoch + 1")
            return ""

    bench = Bench(database, Moved)
    with pytest.raises(OwnershipMoved):
        bench(Release.EXPAND)
    assert len(bench.altered) == 1


def test_role_that_does_not_own_the_table_is_refused(database: Database, connection: psycopg.Connection[Any]) -> None:
    role = f"reader_{secrets.token_hex(4)}"
    bench = Bench(database)
    connection.execute(f"CREATE ROLE {role}")
    try:
        connection.execute(f"GRANT USAGE ON SCHEMA headrace TO {role}")
        connection.execute(f"GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA headrace TO {role}")
        connection.execute(f"GRANT SELECT ON repositories TO {role}")
        bench.connection.execute(f"SET ROLE {role}")
        with pytest.raises(PreflightFailed, match="must be owner of table repositories; use a role in the dsn"):
            bench(Release.EXPAND)
        bench.connection.execute("RESET ROLE")
    finally:
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


def test_existing_column_of_another_type_is_refused(database: Database, connection: psycopg.Connection[Any]) -> None:
    connection.execute("ALTER TABLE repositories ADD COLUMN migration_status integer")
    with pytest.raises(OutOfOrder, match="does not have the type"):
        Bench(database)(Release.EXPAND)


def test_missing_table_is_refused(database: Database, connection: psycopg.Connection[Any]) -> None:
    connection.execute("DROP TABLE repositories")
    with pytest.raises(Refused, match=r"database main has no table public\.repositories"):
        Bench(database)(Release.EXPAND)


def test_stop_cancels_validation(database: Database, connection: psycopg.Connection[Any]) -> None:
    class Slow(StatusBackfills):
        checks = (("slow", "pg_sleep(600) IS NULL"),)

    insert(connection, [(1, 1)])
    stopping = threading.Event()
    alterations = Alterations(database.connect(), Slow(BackfillOptions()), "main", stopping=stopping)
    with ThreadPoolExecutor(1) as pool:
        expanding = pool.submit(alterations.carry_out, Release.EXPAND)
        under_way = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%%VALIDATE%%'"
        until(lambda: connection.execute(under_way).fetchone(), "it validates")
        stopping.set()
        alterations.cancel()
        with pytest.raises(Interrupted, match="completed steps are not undone"):
            expanding.result(PATIENCE)
    assert list(alterations.found().checks) == [Slow.constraint("slow")]


def test_alter_waits_for_ownership_no_longer_than_the_timeout(
    database: Database, connection: psycopg.Connection[Any]
) -> None:
    bench = Bench(database, lock_timeout_ms=10, patience_seconds=0.01)
    with connection.transaction():
        exclude(connection, [ownership_key("registry")])
        with pytest.raises(LockNotGranted):
            bench(Release.EXPAND)
    assert len(bench(Release.EXPAND)) == 3


def test_stop_interrupts_waiting_for_the_table(database: Database, connection: psycopg.Connection[Any]) -> None:
    bench = Bench(database)
    bench.stopping.set()
    with reading(database), pytest.raises(Interrupted):
        bench(Release.EXPAND)
    assert bench.altered == []


def test_each_partition_is_validated_separately(database: Database, connection: psycopg.Connection[Any]) -> None:
    connection.execute("DROP TABLE repositories")
    connection.execute(PARTITIONED)
    insert(connection, [(namespace, namespace) for namespace in range(10)])
    done = Bench(database)(Release.EXPAND)
    validated = [each.what.rsplit(".", 1)[-1] for each in done if "validated" in each.what]
    assert validated == ["part_1_0", "part_1", "part_0", "repositories"]
    connection.execute("UPDATE repositories SET migration_status = 'native'")
    Bench(database)(Release.CONTRACT)
    with pytest.raises(psycopg.errors.CheckViolation):
        insert(connection, [(11, 11)])
    Bench(database)(Release.CONTRACT_DOWN)
    Bench(database)(Release.EXPAND_DOWN)
    assert Bench(database).alterations.found() == Found()
