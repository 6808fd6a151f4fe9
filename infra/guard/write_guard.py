"""Installs the guard: a trigger that refuses writes to a table in a database that does not own its gitlab schema.

headrace's own writers are fenced (`consumers.ledger.fence`), the application is not: its writes on the old side of a
switchover are in no topic, and after the promotion in no other database. The trigger works like the fence: it shares an
advisory lock, which writes nothing, and then reads the owner. So a switchover waits for the transactions that have
written, and later writes are refused (docs/how-to/guarding-a-switchover.md).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import resources
from typing import Any, Final

import psycopg
from psycopg import sql

from infra.postgres.advisory_locks import lock_key, ownership_key
from infra.postgres.connect import one_line
from infra.postgres.control import database_name, owners
from infra.settings.model import DatabaseSettings, Settings
from infra.settings.table_labels import TableLabels
from infra.state.history import Actor, OperatorAction, operator, record_action
from schemas.errors import HeadraceError, Interrupted, PreflightFailed, Refused
from schemas.gitlab_schemas import PER_DATABASE

Connection = psycopg.Connection[Any]

TRIGGER: Final = "headrace_guard"
FUNCTION_REMOVAL: Final = "DROP FUNCTION IF EXISTS headrace.guard()"
_INSTALLING: Final = lock_key("guard", "installing")
"""One process at a time installs or removes: two that replace the function at once would fail."""
_TRY_MS: Final = 200
"""How long a statement may wait for a table lock, with the application's writes queued after it."""
_NO_LOCK: Final = ("SIReadLock",)
_READERS: Final = ("SIReadLock", "AccessShareLock", "RowShareLock")
"""Lock modes that dropping a trigger, and creating one, do not conflict with."""
_PAUSES: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between tries, in which those writes proceed."""

_BEFORE_EVERY_STATEMENT: Final = 2 | 4 | 8 | 16 | 32
"""pg_trigger.tgtype: before, insert, delete, update, truncate; not for each row."""

_TABLES: Final = """
SELECT n.nspname || '.' || c.relname, rn.nspname || '.' || r.relname
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_class r ON r.oid = coalesce(pg_catalog.pg_partition_root(c.oid), c.oid)
  JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'headrace') AND n.nspname NOT LIKE 'pg\\_%'
 ORDER BY 1
"""
"""Each table with its partition root, or itself: a statement fires only the trigger of the table that it names."""
_GUARDED: Final = """
SELECT n.nspname || '.' || c.relname, t.tgargs, t.tgtype, t.tgenabled = 'A'
  FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid JOIN pg_catalog.pg_namespace pn ON pn.oid = p.pronamespace
 WHERE t.tgname = %s AND pn.nspname = 'headrace' AND p.proname = 'guard'
 ORDER BY 1
"""
_FUNCTION: Final = """
SELECT p.prosrc, p.prosecdef, p.proconfig, p.provolatile = 'v', r.rolname,
       pg_catalog.has_schema_privilege(r.oid, 'headrace', 'USAGE'),
       pg_catalog.has_table_privilege(r.oid, 'headrace.schema_ownership', 'SELECT')
       AND pg_catalog.has_table_privilege(r.oid, 'headrace.schema_ownership', 'INSERT')
       AND pg_catalog.has_table_privilege(r.oid, 'headrace.database', 'SELECT')
       AND pg_catalog.has_table_privilege(r.oid, 'headrace.database', 'INSERT')
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_roles r ON r.oid = p.proowner
 WHERE n.nspname = 'headrace' AND p.proname = 'guard'
"""
_HOLDERS: Final = """
SELECT DISTINCT l.pid, coalesce(nullif(a.application_name, ''), 'a session')
  FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'relation' AND l.granted AND l.relation = pg_catalog.to_regclass(%s) AND l.mode <> ALL (%s)
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
   AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
 ORDER BY 1
"""


class TableInUse(HeadraceError):
    """Run it again to continue, or end the transaction that locks the table."""


class NotGuardable(Refused):
    """See docs/how-to/guarding-a-switchover.md; no table was changed."""


def function_sql() -> str:
    """Return the statements that create the trigger's function."""
    return resources.files("infra.guard").joinpath("guard.sql").read_text(encoding="utf-8").strip()


def trigger_sql(gitlab_schema: str, table: str) -> list[sql.Composed]:
    """Return the statements that guard `table` (`schema.table`): both take SHARE ROW EXCLUSIVE on it.

    ALWAYS, so that it also fires in a replication tool's session (session_replication_role = replica).
    """
    names = {"trigger": sql.Identifier(TRIGGER), "table": sql.Identifier(*table.split(".", 1))}
    return [
        sql.SQL(
            "CREATE OR REPLACE TRIGGER {trigger} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION headrace.guard({gitlab_schema}, {key})"
        ).format(**names, gitlab_schema=sql.Literal(gitlab_schema), key=sql.Literal(str(ownership_key(gitlab_schema)))),
        # ONLY: a statement-level trigger is not inherited by partitions.
        sql.SQL("ALTER TABLE ONLY {table} ENABLE ALWAYS TRIGGER {trigger}").format(**names),
    ]


def removal_sql(table: str) -> sql.Composed:
    """Return the statement that lets `table` accept writes again; it takes ACCESS EXCLUSIVE on it."""
    names = sql.Identifier(TRIGGER), sql.Identifier(*table.split(".", 1))
    return sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(*names)


def tables_in(
    connection: Connection, settings: Settings, database: str, gitlab_schemas: Iterable[str]
) -> dict[str, str]:
    """Return `tables_of` for a database of the settings.

    The tables that other databases' sections name count too, unless its own `table_schemas` mentions them: a table has
    one gitlab schema everywhere, and only the copy's section may name it. Their patterns are about their own tables.
    """
    elsewhere: dict[str, str] = {}
    for name in sorted(settings.databases.keys() - {database}):
        elsewhere |= settings.databases[name].table_schemas
    return tables_of(connection, gitlab_schemas, database, settings.database(database), elsewhere)


def tables_of(
    connection: Connection,
    gitlab_schemas: Iterable[str],
    database: str,
    section: DatabaseSettings,
    elsewhere: Mapping[str, str],
) -> dict[str, str]:
    """Return table → gitlab schema for the database's tables and partitions that belong to one of `gitlab_schemas`.

    `section` is the database's in the settings, and `elsewhere` has the tables that other sections name. A partition
    that is not named has its root's gitlab schema: its rows are published as the root's. Tables that every
    database has belong to each, and have no guard.
    """
    wanted = set(gitlab_schemas) - PER_DATABASE
    labels = TableLabels(database, section)

    def label(table: str) -> str | None:
        return labels.known(table, wanted, elsewhere)

    found = {}
    for table, root in connection.execute(_TABLES):
        named = table in section.table_schemas or table in elsewhere
        gitlab_schema = label(table) if named else label(root) or label(table)
        if gitlab_schema in wanted:
            found[table] = gitlab_schema
    return found


def installed(connection: Connection) -> dict[str, str]:
    """Return the tables whose guard works, each with its gitlab schema.

    A trigger that is disabled, altered or from another version of headrace does not count.
    """
    function = connection.execute(_FUNCTION).fetchone()
    if function is None or not _is_current(function):
        return {}
    return {
        table: gitlab_schema
        for table, arguments, kind, always in connection.execute(_GUARDED, (TRIGGER,))
        if always
        and kind == _BEFORE_EVERY_STATEMENT
        and arguments == _arguments(gitlab_schema := _gitlab_schema(arguments))
    }


def present(connection: Connection) -> dict[str, str]:
    """Return the tables that have the trigger in any state, each with its gitlab schema."""
    found = connection.execute(_GUARDED, (TRIGGER,))
    return {table: _gitlab_schema(arguments) for table, arguments, *_ in found}


def fault(connection: Connection) -> NotGuardable | None:
    """Return why the trigger fails for every session, None if it works or does not exist.

    It runs with the rights of its function's owner.
    """
    found = connection.execute(_FUNCTION).fetchone()
    if found is None:
        return None
    *_, owner, may_use, may_read = found
    if may_use and may_read:
        return None
    return NotGuardable(
        f"the guard runs as {owner}, the owner of headrace.guard(), which may not read the owners",
        remedy=f'GRANT USAGE ON SCHEMA headrace TO "{owner}"; GRANT SELECT, INSERT ON headrace.schema_ownership,'
        f' headrace.database TO "{owner}"',
    )


def install(
    connection: Connection,
    gitlab_schema: str,
    tables: Sequence[str],
    *,
    seconds: float = 60.0,
    stop: threading.Event | None = None,
    actor: Actor | None = None,
) -> list[str]:
    """Install the guard on `tables` (`schema.table`) of `gitlab_schema`; return those that did not have it.

    Idempotent. A table that has the guard is not locked; each table has its own transaction, so that the next run
    continues after an interruption. `seconds` limits the tries for all tables in use together. The connection must be
    in autocommit mode, to a primary. Raises NotGuardable if the trigger would refuse all writes (no database owns the
    gitlab schema) or fail, PreflightFailed for a missing privilege, TableInUse, Interrupted.
    """
    tries = _Tries(connection, seconds, stop or threading.Event())
    tries.change("headrace.schema_ownership", partial(_prepare, connection, gitlab_schema))
    done = []
    done_by = actor or operator()
    for table in tables:
        recorded = partial(record_action, connection, OperatorAction.GUARD, [table], done_by, if_permitted=True)
        if installed(connection).get(table) != gitlab_schema:
            tries.change(table, partial(_run, connection, trigger_sql(gitlab_schema, table), recorded))
            done.append(table)
    return done


def remove(
    connection: Connection,
    gitlab_schemas: Iterable[str] | None = None,
    *,
    seconds: float = 60.0,
    stop: threading.Event | None = None,
    actor: Actor | None = None,
) -> list[str]:
    """Remove the guard, in any state, from the tables of `gitlab_schemas`, or from all; return those tables.

    Idempotent. Raises PreflightFailed, TableInUse and Interrupted, as `install`.
    """
    wanted = None if gitlab_schemas is None else set(gitlab_schemas)
    tries = _Tries(connection, seconds, stop or threading.Event())
    done = []
    done_by = actor or operator()
    for table, gitlab_schema in present(connection).items():
        if wanted is None or gitlab_schema in wanted:
            recorded = partial(record_action, connection, OperatorAction.UNGUARD, [table], done_by, if_permitted=True)
            tries.change(table, partial(_run, connection, [removal_sql(table)], recorded), ignoring=_NO_LOCK)
            done.append(table)
    if not present(connection):
        tries.change("headrace.schema_ownership", partial(_drop_function, connection))
    return done


class _Tries:
    """Changes tables that are in use, each in its own transaction, which never waits long."""

    def __init__(self, connection: Connection, seconds: float, stop: threading.Event) -> None:
        self._connection = connection
        self._stop = stop
        self._deadline = time.monotonic() + seconds

    def change(self, table: str, do: Callable[[], object], *, ignoring: Sequence[str] = _READERS) -> None:
        """Call `do`, which changes `table` and waits for every lock on it except those in modes `ignoring`."""
        tries = 0
        while True:
            if self._stop.is_set():
                raise Interrupted(f"{table} was not changed")
            try:
                with self._connection.transaction():
                    self._connection.execute(f"SET LOCAL lock_timeout = {_TRY_MS}")
                    self._connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", (_INSTALLING,))
                    do()
                return
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                if time.monotonic() > self._deadline:
                    holders = self._holders(table, ignoring)
                    raise TableInUse(f"{table} stayed in use, at last by {holders}") from error
            except psycopg.errors.InsufficientPrivilege as error:
                raise PreflightFailed(
                    f"the role {self._connection.info.user} may not change the guard on {table}: {one_line(error)}",
                    remedy="set HEADRACE_DATABASES__<NAME>__DSN to a dsn of the table's owner, or have an"
                    " administrator run the output of `headrace guard --sql`",
                ) from error
            self._stop.wait(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1

    def _holders(self, table: str, ignoring: Sequence[str]) -> str:
        found = self._connection.execute(_HOLDERS, (table, list(ignoring))).fetchall()
        named = (
            f"{name} (process {pid})" if pid else "a prepared transaction (pg_prepared_xacts)" for pid, name in found
        )
        return ", ".join(named) or "another transaction"


def _run(connection: Connection, statements: Iterable[sql.Composed], recorded: Callable[[], object]) -> None:
    for statement in statements:
        connection.execute(statement)
    recorded()


def _prepare(connection: Connection, gitlab_schema: str) -> None:
    """Create or replace the function; raise NotGuardable if it would refuse every write or fail."""
    if owners(connection).get(gitlab_schema) is None or database_name(connection) is None:
        raise NotGuardable(
            f"no database owns {gitlab_schema}, so the guard would refuse every write",
            remedy=f"start `headrace produce` or `headrace consume` once with {gitlab_schema} in the settings",
        )
    found = connection.execute(_FUNCTION).fetchone()
    if found is None or not _is_current(found):
        connection.execute(function_sql().encode())
    if (failing := fault(connection)) is not None:
        raise failing


def _drop_function(connection: Connection) -> None:
    try:
        with connection.transaction():
            connection.execute(FUNCTION_REMOVAL)
    except psycopg.errors.DependentObjectsStillExist:
        pass  # the operator's own trigger uses the function


def _is_current(function: tuple[Any, ...]) -> bool:
    source, definer, settings, volatile, *_ = function
    return bool(definer and volatile) and settings == ['search_path=""'] and source == _source()


def _source() -> str:
    return function_sql().split("$guard$")[1]


def _arguments(gitlab_schema: str) -> bytes:
    """Return the trigger's arguments as pg_trigger has them, each terminated by a zero byte."""
    return f"{gitlab_schema}\0{ownership_key(gitlab_schema)}\0".encode()


def _gitlab_schema(arguments: bytes) -> str:
    return arguments.partition(b"\0")[0].decode()
