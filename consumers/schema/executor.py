"""Alters a table that is in use, without blocking other sessions for longer than the lock timeout.

An ALTER TABLE that waits for a lock blocks all later statements on the table, even reads. So it is not tried while a
transaction holds the table that already held it one lock timeout ago, and it never waits longer than that.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from consumers.contract.backfill import Backfill
from consumers.ledger import fence
from consumers.ledger.target import backoff
from consumers.schema.plan import NOT_NULL, Found, Release, Step, Table, next_step, refusal
from infra.postgres.connect import one_line
from infra.postgres.key_order import compared, default_operators
from infra.service import log
from infra.service.signals import shut_down
from infra.state.history import Actor, OperatorAction, operator, record_action
from infra.state.snapshot_requests import SnapshotRequest, send_request
from schemas.errors import HeadraceError, Interrupted, PreflightFailed, Refused
from schemas.lazy_dataclass import dataclass

Connection = psycopg.Connection[Any]

_TREE: Final = """
    WITH RECURSIVE tree AS (
        SELECT c.oid, 0 AS depth FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND c.relkind IN ('r', 'p')
        UNION ALL
        SELECT i.inhrelid, tree.depth + 1 FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
    )
    SELECT array_agg(oid::bigint ORDER BY depth) FROM tree
"""
"""The table, then its partitions, and theirs."""
_COLUMN: Final = """
    SELECT format_type(atttypid, atttypmod) AS column_type, atttypid = to_regtype(%(column_type)s) AS right_type
      FROM pg_attribute WHERE attrelid = %(table)s AND attname = %(column)s AND NOT attisdropped
"""
_CHECKS: Final = """
    SELECT co.conname AS name, n.nspname AS schema, c.relname AS table, co.convalidated AS validated,
           co.conrelid::bigint = (%(tree)s::bigint[])[1] AS root
      FROM pg_constraint co JOIN pg_class c ON c.oid = co.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE co.conrelid::bigint = ANY(%(tree)s) AND co.contype = 'c' AND co.conname = ANY(%(checks)s)
     ORDER BY co.conname, array_position(%(tree)s::bigint[], co.conrelid::bigint) DESC
"""
# The role may not see other roles' transactions in pg_stat_activity, but every role sees all locks.
_HOLDERS: Final = """
    SELECT DISTINCT l.virtualtransaction, l.pid, coalesce(a.application_name, '')
      FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
     WHERE l.locktype = 'relation' AND l.granted AND l.relation::bigint = ANY(%s)
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND l.mode <> 'SIReadLock' AND l.pid IS DISTINCT FROM pg_backend_pid()
     ORDER BY l.virtualtransaction
"""
_RUNS: Final = """
    SELECT count(DISTINCT m.name) > 0, coalesce(sum(p.applied + p.skipped + p.dead_letters), 0) > 0
      FROM headrace.migrations m LEFT JOIN headrace.progress p ON p.migration = m.name AND p.run = m.run
     WHERE m.name = %s
"""


class LockNotGranted(HeadraceError):
    """Run the command again, it resumes where it was; or terminate the transaction that holds the table."""


class RowsForbidThis(Refused):
    """Correct those rows, then run the command again."""


_COUNTED: Final = (Release.CONTRACT, Release.EXPAND_DOWN)
"""The releases that depend on the rows' values."""


@dataclass(frozen=True)
class Done:
    """A step that was executed: its description, and its number of tries and duration."""

    what: str
    statement: str
    tries: int
    seconds: float


class Alterations:
    """Executes the steps of a backfill's releases over one connection in autocommit mode.

    `say` is called with each step as it is done.
    """

    def __init__(
        self,
        connection: Connection,
        migration: Backfill,
        database: str,
        *,
        stopping: threading.Event,
        say: Callable[[Done], object] = lambda _done: None,
        actor: Actor | None = None,
    ) -> None:
        self._actor = actor or operator()
        self._connection = connection
        self._migration = migration
        self._kind = type(migration)
        self._database = database
        self._stopping = stopping
        self._say = say
        self._log = log.get(migration=migration.name, database=database)

    def found(self, *, count: bool = False) -> Found:
        """Return the current state; with `count`, also of the rows, which may read the whole table.

        Raises OwnershipMoved if the database does not own the gitlab schema, and Refused if the table does not exist.
        """
        with self._transaction():
            return self._found(count=count)

    def carry_out(self, release: Release) -> list[Done]:
        """Complete `release` from its current state, and return the steps executed. Idempotent.

        Raises OutOfOrder; OwnershipMoved and Refused as `found`; LockNotGranted after `patience_seconds`;
        RowsForbidThis if a row violates a check; Interrupted. Steps that were executed are not undone.
        """
        done: list[Done] = []
        tries, began = 0, time.monotonic()
        while (outcome := self._attempt(release)) is not None:
            tries += 1
            seconds = time.monotonic() - began
            if isinstance(outcome, Step):
                done.append(Done(outcome.what, outcome.statement.as_string(None), tries, round(seconds, 3)))
                self._say(done[-1])
                tries, began = 0, time.monotonic()
                continue
            if seconds >= self._migration.options.patience_seconds:
                raise LockNotGranted(f"{self._kind.table} was locked for {seconds:.0f} s, most recently by {outcome}")
            pause = backoff(tries)
            self._log.info("table in use", blocked_by=outcome, tries=tries, retry_in_seconds=pause)
            self._wait(pause)
        return done

    def cancel(self) -> None:
        """Cancel the current statement; called from another thread if stopping takes too long."""
        with contextlib.suppress(psycopg.Error):
            self._connection.cancel_safe(timeout=1.0)

    def cut(self) -> None:
        """Shut the connection's socket down; called from another thread if cancelling did not help."""
        shut_down(self._connection)

    def _attempt(self, release: Release) -> Step | str | None:
        """Execute the next step and return it, or None if all are done; if the table is in use, return by whom."""
        try:
            # For each try: meanwhile an application may have written, or another process made progress.
            found = self.found(count=release in _COUNTED)
            if refused := refusal(release, self._kind, found):
                raise refused
            step = next_step(release, self._kind, found)
            if step is not None:
                if step.exclusive and (blocked_by := self._held_by()):
                    return blocked_by
                self._execute(step)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            return ", ".join(self._holders().values()) or "another transaction"
        except (psycopg.errors.DuplicateObject, psycopg.errors.UndefinedObject, psycopg.errors.UndefinedColumn):
            return "another process that alters the table"
        except psycopg.errors.QueryCanceled:
            self._wait(0)
            raise
        return step

    def _execute(self, step: Step) -> None:
        try:
            with self._transaction():
                # Logged before it is executed, since VALIDATE may take long.
                self._log.info("altering", statement=step.statement.as_string(None))
                self._connection.execute(step.statement)
                if step.reread:
                    send_request(self._connection, SnapshotRequest(table=self._kind.table))
                record_action(
                    self._connection,
                    OperatorAction.SCHEMA,
                    [self._kind.name],
                    self._actor,
                    if_permitted=True,
                    step=step.what,
                )
        except psycopg.errors.CheckViolation as error:
            raise RowsForbidThis(f"rows of {self._kind.table} violate {error.diag.constraint_name}") from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise PreflightFailed(
                f"cannot alter {self._kind.table}: {one_line(error)}",
                remedy="use a role in the dsn that owns the table and has the privileges that `headrace init --sql`"
                " grants; the services may use another role",
            ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Open a transaction that waits for no lock longer than the timeout and keeps the ownership."""
        timeout = f"{self._migration.options.lock_timeout_ms}ms"
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", (timeout,))
            # Counting and VALIDATE read the whole table; they block only VACUUM and other ALTER TABLEs.
            cursor.execute("SET LOCAL statement_timeout = 0")
            fence.own(cursor, gitlab_schema=self._kind.gitlab_schema, database=self._database)
            yield

    def _wait(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise Interrupted(f"{self._migration.name} was stopped; completed steps are not undone")

    def _held_by(self) -> str:
        """Return the transactions that hold the table now and held it one lock timeout ago; empty without any."""
        before = self._holders()
        if not before:
            return ""
        self._wait(self._migration.options.lock_timeout_ms / 1000)
        return ", ".join(holder for transaction, holder in self._holders().items() if transaction in before)

    def _holders(self) -> Mapping[str, str]:
        return {
            transaction: f"process {pid} ({application})" if application else f"process {pid}"
            for transaction, pid, application in self._connection.execute(_HOLDERS, (self._tree(),))
        }

    def _tree(self) -> list[int]:
        schema, table = self._kind.table.split(".", 1)
        row = self._connection.execute(_TREE, {"schema": schema, "table": table}).fetchone()
        if row is None or row[0] is None:
            raise Refused(
                f"database {self._database} has no table {self._kind.table}",
                remedy=f"correct the declaration of {self._kind.name}, or the dsn",
            )
        return list(row[0])

    def _found(self, *, count: bool) -> Found:
        kind, tree = self._kind, self._tree()
        if self._connection.execute("SELECT to_regtype(%s)", (kind.column_type,)).fetchone() == (None,):
            raise Refused(
                f"database {self._database} has no type {kind.column_type}, which {kind.name} declares",
                remedy="correct the declaration; a type that is not built in needs its schema",
            )
        with self._connection.cursor(row_factory=dict_row) as cursor:
            column = cursor.execute(
                _COLUMN, {"table": tree[0], "column": kind.column, "column_type": kind.column_type}
            ).fetchone()
            names = [kind.constraint(check) for check in (*dict(kind.checks), NOT_NULL)]
            checks = cursor.execute(_CHECKS, {"tree": tree, "checks": names}).fetchall()
        unvalidated: dict[str, list[Table]] = {check["name"]: [] for check in checks if check["root"]}
        for check in checks:
            if check["name"] in unvalidated and not check["validated"]:
                unvalidated[check["name"]].append((check["schema"], check["table"]))
        # If the check exists, VALIDATE finds such rows.
        counts = count and column is not None and kind.constraint(NOT_NULL) not in unvalidated
        empty, foreign = self._counted() if counts else (None, None)
        known, begun = self._runs()
        return Found(
            column["column_type"] if column else None,
            right_type=bool(column is None or column["right_type"]),
            checks=unvalidated,
            empty=empty,
            foreign=foreign,
            known=known,
            begun=begun,
        )

    def _counted(self) -> tuple[int, int]:
        column = sql.Identifier(self._kind.column)
        operators = default_operators(self._connection, self._tree()[0], [self._kind.column])
        row = self._connection.execute(
            sql.SQL(
                "SELECT count(*) FILTER (WHERE {column} IS NULL),"
                " count(*) FILTER (WHERE {column} IS NOT NULL AND NOT {same})"
                " FROM {table}"
            ).format(
                column=column,
                same=compared([column], "=", [sql.Literal(self._kind.value)], operators),
                table=self._kind.identifier(),
            )
        ).fetchone()
        assert row is not None
        return int(row[0]), int(row[1])

    def _runs(self) -> tuple[bool, bool]:
        row = self._connection.execute(_RUNS, (self._kind.name,)).fetchone()
        assert row is not None
        return bool(row[0]), bool(row[1])
