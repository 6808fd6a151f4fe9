"""The guard on real servers: every write is refused once another database is the owner."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from infra.guard import write_guard
from infra.postgres.advisory_locks import exclude, ownership_key
from infra.postgres.control import Owner, database_name, ensure_control_schema, owners
from infra.settings.model import DatabaseSettings
from infra.stack import PostgresServer, Stack
from schemas.errors import Interrupted, PreflightFailed
from tests.conftest import Database, new_database
from tests.consumers.services import advisory_lock_is_waited_for, until
from tests.server_versions import MAJORS, server_or_skip

pytestmark = pytest.mark.stack

Connection = psycopg.Connection[Any]

DOCUMENT = Path(__file__).parents[3] / "docs" / "how-to" / "guarding-a-switchover.md"

SCHEMA = """
    CREATE TABLE public.stays (id int PRIMARY KEY);
    CREATE TABLE public.moves (id int PRIMARY KEY, stays int REFERENCES public.stays ON DELETE CASCADE, n int);
    CREATE TABLE public.parts (id int, n int, PRIMARY KEY (id, n)) PARTITION BY RANGE (id);
    CREATE TABLE public.part_1 PARTITION OF public.parts FOR VALUES FROM (0) TO (10) PARTITION BY LIST (n);
    CREATE TABLE public.part_1_1 PARTITION OF public.part_1 DEFAULT;
    INSERT INTO public.stays VALUES (1);
    INSERT INTO public.moves VALUES (1, 1, 0), (2, NULL, 0);
    INSERT INTO public.parts VALUES (1, 0);
    GRANT ALL ON ALL TABLES IN SCHEMA public TO application;
"""
LABELS = {"public.stays": "gitlab_main", "public.moves": "gitlab_ci", "public.parts": "gitlab_ci"}
OF_CI = ["public.moves", "public.part_1", "public.part_1_1", "public.parts"]
GIVE = "UPDATE headrace.schema_ownership SET owner = 'other', epoch = epoch + 1 WHERE gitlab_schema = 'gitlab_ci'"


def of_schemas(
    connection: Connection, gitlab_schemas: list[str], labels: dict[str, str], own: list[str] | None = None
) -> dict[str, str]:
    section = {"dsn": "host=h", "gitlab_schemas": own or gitlab_schemas, "table_schemas": labels}
    return write_guard.tables_of(connection, gitlab_schemas, "main", DatabaseSettings.model_validate(section), {})


@pytest.fixture(scope="module", params=["the stack's", "the oldest"])
def server(request: pytest.FixtureRequest, stack: Stack) -> Iterator[PostgresServer | Any]:
    if request.param == "the stack's":
        yield stack.postgres
        return
    with server_or_skip(MAJORS[0]) as running:
        yield running


class Guarded:
    """A database that owns gitlab_main and gitlab_ci, whose gitlab_ci tables have the guard."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.admin = database.connect()
        self.admin.execute(
            "DO $$ BEGIN CREATE ROLE application; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$"
        )
        self.admin.execute(SCHEMA.encode())
        ensure_control_schema(self.admin, "main", ["gitlab_main", "gitlab_ci"])
        self.install()

    def install(self, **options: Any) -> list[str]:
        tables = of_schemas(self.admin, ["gitlab_ci"], LABELS)
        return write_guard.install(self.admin, "gitlab_ci", list(tables), **options)

    def application(self, *, autocommit: bool = True) -> Connection:
        """Return a session of a role that has no right on schema headrace."""
        connection = self._database.connect()
        connection.execute("SET ROLE application")
        connection.autocommit = autocommit
        return connection

    def give_away(self) -> None:
        """Do what a switchover does to close gitlab_ci."""
        with self.admin.transaction():
            exclude(self.admin, [ownership_key("gitlab_ci")])
            self.admin.execute(GIVE)

    def rows(self) -> list[tuple[Any, ...]]:
        return self.admin.execute("SELECT id, n FROM public.moves ORDER BY 1").fetchall()


@pytest.fixture
def guarded(server: PostgresServer) -> Iterator[Guarded]:
    with new_database(server) as database:
        yield Guarded(database)


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


def refused(connection: Connection, statement: str) -> bool:
    try:
        connection.execute(statement.encode())
    except errors.ReadOnlySqlTransaction:
        return True
    return False


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


def recorded(guarded: Guarded) -> tuple[str | None, dict[str, Owner]]:
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


def test_the_tables_of_a_gitlab_schema_are_found_with_their_partitions(guarded: Guarded) -> None:
    connection = guarded.admin
    connection.execute(
        "CREATE TABLE public.ci_builds (id int); CREATE TABLE public.tags (id int); CREATE TEMP TABLE ci_stages ();"
    )
    assert of_schemas(connection, ["gitlab_ci"], LABELS) == dict.fromkeys(
        sorted([*OF_CI, "public.ci_builds", "public.tags"]), "gitlab_ci"
    )
    assert list(of_schemas(connection, ["gitlab_main"], LABELS, ["gitlab_ci"])) == ["public.stays"]
    assert "public.tags" not in of_schemas(connection, ["gitlab_ci"], LABELS, ["registry"]), "which one is not known"
    other = {**LABELS, "public.part_1_1": "gitlab_main", "public.ci_builds": "gitlab_main"}
    assert list(of_schemas(connection, ["gitlab_ci"], other)) == [
        "public.moves", "public.part_1", "public.parts", "public.tags",
    ]  # fmt: skip
    assert of_schemas(connection, ["gitlab_shared"], {"public.stays": "gitlab_shared"}) == {}
    # A pattern that matches a partition does not take it from its root.
    pattern = {"public.*": "gitlab_main", "public.parts": "gitlab_ci"}
    assert list(of_schemas(connection, ["gitlab_ci"], pattern)) == ["public.part_1", "public.part_1_1", "public.parts"]


def test_tables_that_only_another_section_names_are_found(guarded: Guarded) -> None:
    own = {"dsn": "host=h", "gitlab_schemas": ["gitlab_main"], "table_schemas": {"public.moves": "gitlab_main"}}
    section = DatabaseSettings.model_validate(own)
    elsewhere = {"public.moves": "gitlab_ci", "public.stays": "gitlab_ci", "public.*": "gitlab_ci"}
    found = write_guard.tables_of(guarded.admin, ["gitlab_ci"], "main", section, elsewhere)
    assert list(found) == ["public.stays"], "its own section wins, and patterns of others do not count"


def test_second_run_only_adds_the_guard_to_new_tables(guarded: Guarded) -> None:
    assert list(write_guard.installed(guarded.admin)) == OF_CI
    assert guarded.install() == []
    guarded.admin.execute("CREATE TABLE public.part_2 PARTITION OF public.parts DEFAULT")
    assert "public.part_2" not in write_guard.installed(guarded.admin)
    assert guarded.install() == ["public.part_2"]
    guarded.give_away()
    with pytest.raises(errors.ReadOnlySqlTransaction):
        guarded.admin.execute("INSERT INTO public.part_2 VALUES (20, 20)")


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE public.moves DISABLE TRIGGER headrace_guard",
        "ALTER TABLE public.moves ENABLE TRIGGER headrace_guard",
        "DROP TRIGGER headrace_guard ON public.moves",
        "CREATE OR REPLACE TRIGGER headrace_guard BEFORE INSERT ON public.moves"
        " FOR EACH STATEMENT EXECUTE FUNCTION headrace.guard('gitlab_ci', '1')",
    ],
)
def test_broken_guard_counts_as_missing_and_is_repaired(guarded: Guarded, damage: str) -> None:
    guarded.admin.execute(damage.encode())
    assert "public.moves" not in write_guard.installed(guarded.admin)
    assert guarded.install() == ["public.moves"]
    guarded.give_away()
    with pytest.raises(errors.ReadOnlySqlTransaction):
        guarded.admin.execute("UPDATE public.moves SET n = 9")


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER FUNCTION headrace.guard() SECURITY INVOKER",
        "ALTER FUNCTION headrace.guard() RESET search_path",
        "ALTER FUNCTION headrace.guard() STABLE",
        "CREATE OR REPLACE FUNCTION headrace.guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
    ],
)
def test_a_function_of_another_version_is_replaced(guarded: Guarded, damage: str) -> None:
    guarded.admin.execute(damage.encode())
    assert write_guard.installed(guarded.admin) == {}
    guarded.install()
    assert list(write_guard.installed(guarded.admin)) == OF_CI


def test_two_processes_at_once_install_it_once(guarded: Guarded) -> None:
    write_guard.remove(guarded.admin)
    others = [Guarded.__new__(Guarded) for _ in range(3)]
    for other in others:
        other.admin = guarded._database.connect()
    threads = [threading.Thread(target=other.install) for other in (guarded, *others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(write_guard.installed(guarded.admin)) == OF_CI


def test_table_in_use_is_retried_and_then_reported_with_the_lock_holder(guarded: Guarded) -> None:
    write_guard.remove(guarded.admin)
    writer = guarded.application(autocommit=False)
    writer.execute("SET application_name = 'a long transaction'")
    writer.execute("UPDATE public.moves SET n = 9 WHERE id = 1")
    words = rf"public.moves stayed in use, at last by a long transaction \(process {writer.info.backend_pid}\)"
    with pytest.raises(write_guard.TableInUse, match=words):
        guarded.install(seconds=0.0)
    assert write_guard.installed(guarded.admin) == {}, "its tables are in order, and this is the first"
    stop = threading.Event()
    installed: list[str] = []
    installing = threading.Thread(target=lambda: installed.extend(guarded.install(stop=stop)))
    with guarded._database.connect() as other:
        installing.start()
        until(lambda: waits_for_a_table(other), "the installation waits for the table")
        until(lambda: not waits_for_a_table(other), "it lets others in again")
        other.execute("UPDATE public.moves SET n = 9 WHERE id = 2")
        writer.commit()
    installing.join()
    assert installed == OF_CI


def waits_for_a_table(connection: Connection) -> bool:
    row = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND NOT granted").fetchone()
    return row != (0,)


def test_guards_installed_before_a_failure_stay_and_the_next_run_continues(guarded: Guarded) -> None:
    write_guard.remove(guarded.admin)
    writer = guarded.application(autocommit=False)
    writer.execute("LOCK TABLE ONLY public.part_1_1 IN ROW EXCLUSIVE MODE")
    with pytest.raises(write_guard.TableInUse, match=r"public\.part_1_1 stayed in use"):
        guarded.install(seconds=0.0)
    assert list(write_guard.installed(guarded.admin)) == ["public.moves", "public.part_1"]
    writer.rollback()
    assert guarded.install() == ["public.part_1_1", "public.parts"]


def test_stopped_run_keeps_the_installed_guards(guarded: Guarded) -> None:
    stop = threading.Event()
    stop.set()
    write_guard.remove(guarded.admin, ["gitlab_ci"])
    with pytest.raises(Interrupted):
        guarded.install(stop=stop)
    assert guarded.install() == OF_CI


def test_gitlab_schema_without_an_owner_is_refused(guarded: Guarded) -> None:
    """Its tables would refuse everybody's writes."""
    with pytest.raises(write_guard.NotGuardable, match="no database owns gitlab_pm, so the guard would refuse every"):
        write_guard.install(guarded.admin, "gitlab_pm", ["public.stays"])
    guarded.admin.execute("UPDATE public.stays SET id = id")


def test_removed_the_tables_take_writes_again(guarded: Guarded) -> None:
    guarded.give_away()
    write_guard.install(guarded.admin, "gitlab_main", ["public.stays"])
    assert write_guard.remove(guarded.admin, ["gitlab_ci"]) == OF_CI
    assert write_guard.remove(guarded.admin, ["gitlab_ci"]) == []
    assert write_guard.installed(guarded.admin) == {"public.stays": "gitlab_main"}
    guarded.application().execute("UPDATE public.moves SET n = 9")
    assert write_guard.remove(guarded.admin) == ["public.stays"]
    assert guarded.admin.execute("SELECT to_regprocedure('headrace.guard()')").fetchone() == (None,)


def test_a_table_in_use_keeps_its_guard(guarded: Guarded) -> None:
    """To drop a trigger takes the table alone: not even readers may hold it."""
    with guarded._database.connect() as reader, reader.transaction():
        reader.execute("LOCK TABLE ONLY public.parts IN ACCESS SHARE MODE")
        words = rf"public\.parts stayed in use, .* a session \(process {reader.info.backend_pid}\)"
        with pytest.raises(write_guard.TableInUse, match=words):
            write_guard.remove(guarded.admin, seconds=0.0)
    assert "public.parts" in write_guard.installed(guarded.admin)
    write_guard.remove(guarded.admin)


def test_removing_headrace_removes_the_guard(guarded: Guarded) -> None:
    guarded.give_away()
    guarded.admin.execute("DROP SCHEMA headrace CASCADE")
    assert guarded.application().execute("UPDATE public.moves SET n = 9").rowcount == 2


# Rights.


@pytest.fixture
def table_owner(guarded: Guarded) -> Iterator[Connection]:
    """A session of the role that owns the tables; the rights that it needs are still to be granted."""
    write_guard.remove(guarded.admin)
    role = sql.Identifier(f"owner of {guarded.admin.info.dbname}")
    guarded.admin.execute(sql.SQL("CREATE ROLE {}").format(role))
    for table in OF_CI:
        name = sql.Identifier(*table.split("."))
        guarded.admin.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(name, role))
    with guarded._database.connect() as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(role))
        yield connection
    guarded.admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))


def role_of(connection: Connection) -> sql.Identifier:
    row = connection.execute("SELECT current_user").fetchone()
    assert row is not None
    return sql.Identifier(row[0])


def documented_rights(to: Connection) -> list[sql.Composed]:
    """Return what docs/how-to/guarding-a-switchover.md grants for both ways, for the session's role."""
    blocks = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return [sql.SQL(block).format(role=role_of(to)) for block in blocks]


def test_the_tables_owner_installs_it_with_the_rights_that_are_documented(
    guarded: Guarded, table_owner: Connection
) -> None:
    with pytest.raises(PreflightFailed, match="permission denied for schema headrace"):
        write_guard.install(table_owner, "gitlab_ci", OF_CI)
    rights, _ = documented_rights(table_owner)
    guarded.admin.execute(rights)
    assert write_guard.install(table_owner, "gitlab_ci", OF_CI) == OF_CI
    guarded.application().execute("UPDATE public.moves SET n = 1")
    guarded.give_away()
    for isolation in ("read committed", "serializable"):
        assert refused(
            guarded.application(), f"SET default_transaction_isolation = '{isolation}'; UPDATE public.moves SET n = 9"
        )
    assert write_guard.remove(table_owner) == OF_CI


def test_where_an_administrator_made_the_function_the_owner_needs_less(
    guarded: Guarded, table_owner: Connection
) -> None:
    guarded.admin.execute(write_guard.function_sql().encode())
    _, rights = documented_rights(table_owner)
    guarded.admin.execute(rights)
    assert write_guard.install(table_owner, "gitlab_ci", OF_CI) == OF_CI
    guarded.application().execute("UPDATE public.moves SET n = 1")


def test_a_function_that_could_not_ask_for_the_owner_is_refused_before_a_table_has_it(
    guarded: Guarded, table_owner: Connection
) -> None:
    """Every write would fail: of the application, which has nothing to do with it."""
    rights, _ = documented_rights(table_owner)
    guarded.admin.execute(rights)
    guarded.admin.execute(sql.SQL("REVOKE INSERT ON headrace.schema_ownership FROM {}").format(role_of(table_owner)))
    with pytest.raises(write_guard.NotGuardable, match="may not read the owners; GRANT USAGE ON SCHEMA headrace"):
        write_guard.install(table_owner, "gitlab_ci", OF_CI)
    assert write_guard.installed(guarded.admin) == {}
    assert guarded.admin.execute("SELECT to_regprocedure('headrace.guard()')").fetchone() == (None,)


def test_role_that_does_not_own_the_table_is_refused_with_its_name(guarded: Guarded) -> None:
    write_guard.remove(guarded.admin)
    guarded.admin.execute("GRANT USAGE, CREATE ON SCHEMA headrace TO application")
    guarded.admin.execute("GRANT SELECT, INSERT ON headrace.schema_ownership, headrace.database TO application")
    with pytest.raises(
        PreflightFailed, match=r"may not change the guard on public\.moves: must be owner of table moves"
    ):
        write_guard.install(guarded.application(), "gitlab_ci", OF_CI)
    assert write_guard.installed(guarded.admin) == {}


def test_other_roles_may_not_execute_the_function(guarded: Guarded) -> None:
    guarded.admin.execute("GRANT USAGE ON SCHEMA headrace TO application; GRANT CREATE ON SCHEMA public TO application")
    application = guarded.application()
    application.execute("CREATE TABLE public.mine ()")
    with pytest.raises(errors.InsufficientPrivilege, match=r"permission denied for function (headrace\.)?guard"):
        application.execute(write_guard.trigger_sql("gitlab_ci", "public.mine")[0])
