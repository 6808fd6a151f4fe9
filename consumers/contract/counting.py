"""Counts the rows that a migration still has to change, within a time limit, or returns the planner's estimate.

A count is a read-only transaction that holds none of headrace's locks, so it never blocks a write, a pause or a
switchover. Its time limit is set in the transaction and overrides those of the role and the database.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.abc import Query

from consumers.contract import contract_checks
from consumers.contract.migration import Migration
from consumers.contract.suggested_index import creation
from infra.postgres import connect
from infra.settings.database_login import Address
from schemas.errors import HeadraceError
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn, parse_lsn

UNLIMITED: Final = 0
"""As in PostgreSQL: zero disables the timeout."""

_EXPLAIN_MS: Final = 1_000


@dataclass(frozen=True)
class Count:
    """The number of remaining rows: None if unknown, the planner's guess if `estimated`.

    `at` is a WAL position after everything that was counted, None if there was no count. `plan` is the query plan,
    if the count timed out.
    """

    rows: int | None
    estimated: bool = False
    at: Lsn | None = None
    plan: tuple[str, ...] = ()

    @property
    def exact(self) -> int | None:
        """The number of remaining rows, None if the count did not finish."""
        return None if self.estimated else self.rows


def count(connection: psycopg.Connection[Any], migration: Migration, *, limit_ms: int, estimate: bool = True) -> Count:
    """Count within `limit_ms` milliseconds per statement; on timeout, `estimate` by the planner. Writes nothing.

    Raises psycopg.Error for anything but the timeout, and what `remaining` raises.
    """
    with _Remembering(connection) as cursor:
        try:
            with connection.transaction():
                _bound(connection, limit_ms)
                return Count(contract_checks.remaining(migration, cursor), at=_insert_lsn(connection))
        except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
            if limit_ms == UNLIMITED:
                raise
        return _estimate(connection, cursor) if estimate else Count(None)


def any_left(connection: psycopg.Connection[Any], migration: Migration, *, limit_ms: int) -> bool | None:
    """Return whether rows remain, within an open transaction; None on timeout."""
    try:
        # Rolled back, so that neither the timeout nor READ ONLY applies to the rest of the transaction.
        with connection.transaction(force_rollback=True), connection.cursor() as cursor:
            _bound(connection, limit_ms)
            return contract_checks.remaining(migration, cursor) > 0
    except psycopg.Error:
        if connection.closed:
            raise
        return None


def too_slow(migration: Migration, limit_ms: int) -> tuple[str, str]:
    """Return the message about a count that timed out, and the hint: an index, if the migration suggests one."""
    statements = " ".join(creation(index) for index in migration.suggested_indexes)
    hint = (
        f"an index that may help: {statements} " if statements else "an index for the query in `remaining` may help; "
    )
    return (
        f"counting the remaining rows takes longer than {limit_ms / 1000:g} seconds",
        f"{hint}`headrace check` shows the plan",
    )


def cancel(connection: psycopg.Connection[Any]) -> None:
    """Cancel the statement running on `connection`; called from another thread."""
    if not connection.closed:
        with contextlib.suppress(psycopg.Error):
            connection.cancel_safe(timeout=1.0)


class _Remembering(psycopg.Cursor[Any]):
    """A cursor that remembers its last statement, to EXPLAIN it if it times out."""

    last: tuple[Query, Any] | None = None

    def execute(self, query: Query, params: Any = None, **options: Any) -> _Remembering:
        self.last = (query, params)
        super().execute(query, params, **options)  # type: ignore[arg-type]
        return self


def _bound(connection: psycopg.Connection[Any], limit_ms: int) -> None:
    connection.execute("SET TRANSACTION READ ONLY")
    connection.execute(
        "SELECT pg_catalog.set_config('statement_timeout', %s, true), pg_catalog.set_config('lock_timeout', %s, true)",
        (str(limit_ms), str(limit_ms)),
    )


def _insert_lsn(connection: psycopg.Connection[Any]) -> Lsn | None:
    row = connection.execute(
        "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL"
        " ELSE pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text END"
    ).fetchone()
    return parse_lsn(row[0]) if row and row[0] else None


def _estimate(connection: psycopg.Connection[Any], cursor: _Remembering) -> Count:
    """Return the planner's estimate of what the last statement would count."""
    if cursor.last is None:
        return Count(None)
    query, params = cursor.last
    try:
        with connection.transaction():
            _bound(connection, _EXPLAIN_MS)
            # A parallel plan shows the rows of one worker.
            connection.execute("SELECT pg_catalog.set_config('max_parallel_workers_per_gather', '0', true)")
            row = connection.execute(_explained("EXPLAIN (FORMAT JSON) ", query, connection), params).fetchone()
            lines = connection.execute(_explained("EXPLAIN ", query, connection), params).fetchall()
    except psycopg.Error:
        return Count(None)
    plan: dict[str, Any] = row[0][0]["Plan"] if row else {"Node Type": ""}
    # count(*) is an Aggregate node; it counts the rows of the node below.
    while plan["Node Type"] == "Limit" and plan.get("Plans"):
        plan = plan["Plans"][0]
    if plan["Node Type"] != "Aggregate" or "Group Key" in plan or not plan.get("Plans"):
        return Count(None, plan=tuple(str(line) for (line,) in lines))
    rows = round(plan["Plans"][0]["Plan Rows"])
    return Count(rows, estimated=True, plan=tuple(str(line) for (line,) in lines))


def _explained(how: LiteralString, query: Query, connection: psycopg.Connection[Any]) -> bytes:
    text = query.as_bytes(connection) if isinstance(query, sql.Composable) else query
    return how.encode() + (text if isinstance(text, bytes) else str(text).encode())


class Counter:
    """Counts in its own thread and connection, so that the caller can continue.

    `address` is the migration's database. It runs one count at a time, and its thread never keeps the process alive.
    """

    def __init__(self, address: Address, migration: Migration) -> None:
        self._address = address
        self._migration = migration
        self._thread: threading.Thread | None = None
        self._connection: psycopg.Connection[Any] | None = None
        self._outcome: Count | Exception | None = None
        self._closed = False

    def begin(self, limit_ms: int) -> None:
        """Start a count, unless one is running."""
        if self._thread is None and not self._closed:
            self._outcome = None
            self._thread = threading.Thread(target=self._run, args=(limit_ms,), name="count", daemon=True)
            self._thread.start()

    @property
    def under_way(self) -> bool:
        """Whether a count was started whose outcome was not taken yet."""
        return self._thread is not None

    @property
    def ready(self) -> bool:
        """Whether there is an outcome to take."""
        return self._thread is not None and not self._thread.is_alive()

    def take(self, seconds: float = 0.0) -> Count | None:
        """Return the outcome, waiting up to `seconds`; None if it is not ready. Raises what the count raised."""
        thread = self._thread
        if thread is None:
            return None
        thread.join(seconds)
        if thread.is_alive():
            return None
        self._thread = None
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        """Cancel a running count; may be called from any thread."""
        connection = self._connection
        if connection is not None:
            cancel(connection)

    def close(self) -> None:
        """Cancel a running count without waiting for it. No count can be started afterwards."""
        self._closed = True
        if self._thread is not None and self._thread.is_alive():
            self.cancel()

    def _run(self, limit_ms: int) -> None:
        try:
            with connect.connect(self._address, name=f"count {self._migration.name}") as connection:
                self._connection = connection
                if not self._closed:
                    self._outcome = count(connection, self._migration, limit_ms=limit_ms)
        except Exception as error:  # raised in the caller's thread by `take`
            self._outcome = error
        finally:
            self._connection = None


def failed(error: Exception) -> str:
    """Return the message about a count that failed, on one line and without values of rows."""
    if (named := error if isinstance(error, HeadraceError) else connect.hidden_rows(error)) is not None:
        return str(named)
    said = connect.one_line(error) if isinstance(error, psycopg.Error) else type(error).__name__
    return f"the remaining rows cannot be counted: {said}"
