"""The guard on real servers: every write is refused once another database is the owner."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import psycopg
import pytest
from psycopg import errors, sql

from consumers.testing.waiting import until
from infra.guard import write_guard
from infra.postgres.advisory_locks import exclude, ownership_key
from infra.postgres.control import Owner, database_name, ensure_control_schema, owners
from tests.consumers.services import advisory_lock_is_waited_for
from tests.infra.guard.guarded import GIVE, Guarded, refused
from tests.prepared import ended

pytestmark = pytest.mark.stack

WRITES = {
    "insert": "INSERT INTO public.moves VALUES (3, NULL, 0)",
    "insert of a row that is there": "INSERT INTO public.moves VALUES (1) ON CONFLICT DO NOTHING",
    "upsert": "INSERT INTO public.moves VALUES (1) ON CONFLICT (id) DO UPDATE SET n = 9",
    "update": "UPDATE public.moves SET n = 9",
    "update of no row": "UPDATE public.moves SET n = 9 WHERE false",
    "delete": "DELETE FROM public.moves",
    "truncate": "TRUNCATE public.moves",
    "truncate by a reference": "TRUNCATE public.stays CASCADE",
    "merge": "MERGE INTO public.moves m USING (SELECT 1 AS id) s ON m.id = s.id WHEN MATCHED THEN UPDATE SET n = 9",
    "in a query": "WITH w AS (UPDATE public.moves SET n = 9 RETURNING id) SELECT * FROM w",
    "cascade of a foreign key": "DELETE FROM public.stays",
    "partition's root": "INSERT INTO public.parts VALUES (2, 0)",
    "partition": "INSERT INTO public.part_1_1 VALUES (2, 0)",
    "partition that is partitioned": "UPDATE public.part_1 SET n = 9",
    "truncate of the root": "TRUNCATE public.parts",
}


def test_every_way_to_write_is_refused_once_another_database_is_the_owner(guarded: Guarded) -> None:
    application = guarded.application()
    writes = dict(WRITES)
    if application.info.server_version < 150_000:
        del writes["merge"]  # a command since PostgreSQL 15
    for statement in writes.values():
        with application.transaction(force_rollback=True):
            application.execute(statement.encode())
    guarded.give_away()
    before = guarded.rows()
    assert [name for name, statement in writes.items() if not refused(application, statement)] == []
    with pytest.raises(errors.ReadOnlySqlTransaction), application.cursor().copy("COPY moves FROM STDIN") as copy:
        copy.write("7\t\\N\t0\n")
    with pytest.raises(errors.ReadOnlySqlTransaction) as error:
        application.execute("UPDATE public.moves SET n = 1")
    assert error.value.diag.message_primary == (
        "public.moves may not be written in database main: gitlab_ci is owned by other"
    )
    assert guarded.rows() == before
    application.execute("UPDATE public.stays SET id = id")  # what stays is written as before


def test_a_replication_tools_session_is_refused_too(guarded: Guarded) -> None:
    guarded.give_away()
    guarded.admin.execute("SET session_replication_role = replica")
    for statement in ("UPDATE public.moves SET n = 9", "TRUNCATE public.parts"):
        with pytest.raises(errors.ReadOnlySqlTransaction):
            guarded.admin.execute(statement)


@pytest.mark.parametrize("isolation", [2, 3, 4])
def test_a_snapshot_from_before_the_close_writes_nothing_after_it(guarded: Guarded, isolation: int) -> None:
    application = guarded.application(autocommit=False)
    application.isolation_level = psycopg.IsolationLevel(isolation)
    assert application.execute("SELECT count(*) FROM public.moves").fetchone() == (2,)
    guarded.give_away()
    expected = errors.ReadOnlySqlTransaction if isolation == 2 else errors.SerializationFailure
    with pytest.raises(expected):
        application.execute("UPDATE public.moves SET n = 9 WHERE id = 1")
    application.rollback()
    with pytest.raises(errors.ReadOnlySqlTransaction):  # tried again, as an application does
        application.execute("UPDATE public.moves SET n = 9 WHERE id = 1")


@pytest.mark.parametrize("isolation", [3, 4])
def test_a_snapshot_from_before_a_copy_was_named_writes_nothing_after_it(guarded: Guarded, isolation: int) -> None:
    """What stays with the old owner is the copy's no more, from when it has its own name."""
    application = guarded.application(autocommit=False)
    application.isolation_level = psycopg.IsolationLevel(isolation)
    application.execute("SELECT")
    with guarded.admin.transaction():
        exclude(guarded.admin, [ownership_key("gitlab_ci")])
        guarded.admin.execute("UPDATE headrace.database SET name = 'copy'")
    with pytest.raises(errors.SerializationFailure):
        application.execute("UPDATE public.moves SET n = 9 WHERE id = 1")


@pytest.mark.parametrize("isolation", [3, 4])
def test_removed_owner_is_not_recorded_again(guarded: Guarded, isolation: int) -> None:
    application = guarded.application(autocommit=False)
    application.isolation_level = psycopg.IsolationLevel(isolation)
    before = recorded(guarded)
    for row in ("headrace.schema_ownership WHERE gitlab_schema = 'gitlab_ci'", "headrace.database"):
        application.execute("SELECT")
        guarded.admin.execute(f"DELETE FROM {row}".encode())
        left = recorded(guarded)
        with pytest.raises(errors.SerializationFailure, match="has no owner recorded for gitlab_ci"):
            application.execute("UPDATE public.moves SET n = 9 WHERE id = 1")
        application.rollback()
        assert recorded(guarded) == left != before
        ensure_control_schema(guarded.admin, "main", ["gitlab_ci"])
        assert recorded(guarded) == before


def recorded(guarded: Guarded) -> tuple[str | None, Mapping[str, Owner]]:
    return database_name(guarded.admin), owners(guarded.admin)


def test_a_write_that_waited_for_the_close_sees_the_new_owner(guarded: Guarded) -> None:
    application = guarded.application()
    outcome: list[bool] = []
    writer = threading.Thread(target=lambda: outcome.append(refused(application, "UPDATE public.moves SET n = 9")))
    with guarded.admin.transaction():
        exclude(guarded.admin, [ownership_key("gitlab_ci")])
        writer.start()
        until(lambda: advisory_lock_is_waited_for(guarded.admin), "the write waits for the close")
        guarded.admin.execute(GIVE)
    writer.join()
    assert outcome == [True]
    assert guarded.rows() == [(1, 0), (2, 0)]


@pytest.mark.parametrize("isolation", [2, 3, 4])
def test_a_close_waits_for_the_transactions_that_have_written(guarded: Guarded, isolation: int) -> None:
    application = guarded.application(autocommit=False)
    application.isolation_level = psycopg.IsolationLevel(isolation)
    application.execute("UPDATE public.moves SET n = 9 WHERE id = 1")
    guarded.admin.execute("SET lock_timeout = '50ms'")
    with pytest.raises(errors.LockNotAvailable):
        guarded.give_away()
    application.execute("UPDATE public.moves SET n = 9 WHERE id = 2")
    application.commit()
    guarded.give_away()
    assert guarded.rows() == [(1, 9), (2, 9)]


def test_a_prepared_transaction_that_has_written_is_waited_for(guarded: Guarded) -> None:
    if guarded.admin.execute("SHOW max_prepared_transactions").fetchone() == ("0",):
        pytest.skip("this server has no prepared transactions")
    application = guarded.application()
    name = guarded.admin.info.dbname
    application.execute(
        sql.SQL("BEGIN; UPDATE public.moves SET n = 9 WHERE id = 1; PREPARE TRANSACTION {}").format(sql.Literal(name))
    )
    with ended(guarded.admin, name):
        with pytest.raises(write_guard.TableInUse, match=r"public\.moves stayed in use, .* by a prepared transaction"):
            write_guard.remove(guarded.admin, seconds=0.0)
        guarded.admin.execute("SET lock_timeout = '50ms'")
        with pytest.raises(errors.LockNotAvailable):
            guarded.give_away()
        guarded.admin.execute(sql.SQL("COMMIT PREPARED {}").format(sql.Literal(name)))
    guarded.give_away()


@pytest.mark.parametrize("isolation", [2, 3, 4])
def test_many_writers_at_once_write_nothing_of_headraces(guarded: Guarded, isolation: int) -> None:
    """No transaction id, so no WAL, for a write of no row; and no lock in the row that says who is the owner."""
    sessions = [guarded.application(autocommit=False) for _ in range(3)]
    for session in sessions:
        session.isolation_level = psycopg.IsolationLevel(isolation)
        session.execute("UPDATE public.moves SET n = 9 WHERE false")
    for session in sessions:
        assert session.execute("SELECT pg_current_xact_id_if_assigned()").fetchone() == (None,)
        session.execute("UPDATE public.moves SET n = 9 WHERE false")
    for table in ("schema_ownership", "database"):
        found = guarded.admin.execute(f"SELECT DISTINCT xmax::text FROM headrace.{table}".encode()).fetchall()
        assert found == [("0",)]


def test_planted_objects_are_not_run_with_the_functions_rights(guarded: Guarded) -> None:
    application = guarded.application()
    application.execute("CREATE TEMP TABLE schema_ownership AS SELECT 'gitlab_ci' AS gitlab_schema, 'main' AS owner")
    guarded.admin.execute(
        "CREATE FUNCTION public.format(text, text, text, text, text, text) RETURNS text"
        " LANGUAGE sql AS $$ SELECT 'x' $$;"
        " CREATE FUNCTION public.ran(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;"
        " CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.ran)"
    )
    application.execute("SET search_path = pg_temp, public, pg_catalog")
    guarded.give_away()
    with pytest.raises(errors.ReadOnlySqlTransaction, match="may not be written in database main"):
        application.execute("UPDATE public.moves SET n = 9")
