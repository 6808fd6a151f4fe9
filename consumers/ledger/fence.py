"""The fence: checks in every apply transaction that this database owns the gitlab schema and the run is current.

It takes two shared advisory locks, then reads the rows under a snapshot taken after the locks. So it sees every change
by a switchover, a pause or a replay, which hold the lock exclusively. The locks last until the transaction ends and
write nothing: a switchover waits for running transactions, and nothing is written after it (promise 3). The same query
returns which transactions this one does not see yet (promise 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from infra.postgres import table_format
from infra.postgres.advisory_locks import migration_key, ownership_key
from infra.postgres.connect import pipelined
from schemas.errors import HeadraceError, OwnershipMoved, Refused
from schemas.xid_snapshot import Hidden, Snapshot

_SHARE: Final = sql.SQL("SELECT pg_advisory_xact_lock_shared({}), pg_advisory_xact_lock_shared({})")
"""Always the gitlab schema's lock before the migration's, so that waiting for one never blocks on the other."""
_SHARE_OWNERSHIP: Final = "SELECT pg_advisory_xact_lock_shared(%s)"
_RECORDED: Final = sql.SQL("""
      FROM (SELECT) AS always
      LEFT JOIN headrace.database d ON true
      LEFT JOIN headrace.schema_ownership o ON o.gitlab_schema = {gitlab_schema}
      LEFT JOIN headrace.migrations m ON m.name = {migration}
""")
"""Always one row, so that a missing record is refused by name."""
_LOOK: Final = sql.SQL("""
    SELECT d.format, d.format_by, d.name, o.owner, m.gitlab_schema, m.run, m.paused, m.failed,
           pg_current_snapshot()::text, pg_current_xact_id()::text::bigint,
           set_config('headrace.fenced', 'yes', true)
    {recorded}
""")
"""The transaction's own id, which the ledger needs anyway, is assigned after the snapshot: see Hidden.

The setting ends with the transaction: `contract_checks.require_held` checks it after a migration's writes.
"""
_OWNER: Final = sql.SQL("""
    SELECT d.format, d.format_by, d.name, o.owner, m.paused, a.max_rate, a.transaction_ms
    {recorded} LEFT JOIN headrace.paces a ON a.migration = m.name
""")


class Wishes(NamedTuple):
    """What an operator wants of a migration's consumers; None: as in the settings."""

    paused: bool = False
    max_rate: float | None = None
    transaction_ms: int | None = None


class Paused(HeadraceError):
    """Resume it with `headrace resume`."""


class Failed(HeadraceError):
    """Fix the cause, then resume it with `headrace resume`, or run it again with `headrace replay`."""


class RunReplaced(HeadraceError):
    """A replay started a new run; the consumer rereads its position from the ledger."""


class DeclarationChanged(Refused):
    """Start a run with the new declaration: `headrace replay`. It reads the topics of the new gitlab schema."""


def hold(cursor: psycopg.Cursor[Any], *, migration: str, run: int, gitlab_schema: str, database: str) -> Hidden:
    """Take the locks that allow a write of `migration` in the cursor's transaction.

    Called first in each apply transaction, at READ COMMITTED. Returns the transactions that this one does not see yet:
    it must not apply their events. Raises NewerFormat if a newer headrace has upgraded the tables, OwnershipMoved if
    this database is not `database` or does not own `gitlab_schema`, DeclarationChanged if the migration was started for
    another gitlab schema, Paused if an operator paused it, Failed if it failed (see circuit_breaker), and RunReplaced
    if `run` is not current. The caller then rolls back, with nothing written.
    """
    with pipelined(cursor.connection):
        _ask_to_hold(cursor, migration, gitlab_schema)
    return _held(cursor, migration, run, gitlab_schema, database)


@contextmanager
def transaction(
    connection: psycopg.Connection[Any],
    *,
    migration: str,
    run: int,
    gitlab_schema: str,
    database: str,
    undone: bool = False,
) -> Iterator[tuple[psycopg.Cursor[Any], Hidden]]:
    """Open a transaction that holds the fence, which is rolled back in the end if `undone`; yield its cursor as well.

    The same as `hold` at a transaction's beginning, and raises as it does; its begin is in the same round trip.
    """
    with ExitStack() as opened:
        cursor = opened.enter_context(connection.cursor())
        with pipelined(connection):
            opened.enter_context(psycopg.Transaction(connection, force_rollback=undone))
            _ask_to_hold(cursor, migration, gitlab_schema)
        yield cursor, _held(cursor, migration, run, gitlab_schema, database)


def _ask_to_hold(cursor: psycopg.Cursor[Any], migration: str, gitlab_schema: str) -> None:
    """Execute the fence's two statements; each has a snapshot of its own. The cursor has the second's result."""
    share, look = _statements(migration, gitlab_schema)
    cursor.connection.execute(share, prepare=True)
    cursor.execute(look, prepare=True)


def _held(cursor: psycopg.Cursor[Any], migration: str, run: int, gitlab_schema: str, database: str) -> Hidden:
    """Return what the fence's second statement found; raises as `hold` does."""
    row = cursor.fetchone()
    assert row is not None
    version, by, name, owner, declared, current, paused, failed, snapshot, xid, _ = row
    table_format.known(version, by, database)
    require_owner(name, owner, gitlab_schema, database)
    require_declaration(migration, declared, gitlab_schema)
    if paused:
        raise Paused(f"{migration} is paused")
    if failed is not None:
        raise Failed(f"{migration} has failed: {failed}")
    if current != run:
        raise RunReplaced(f"run {run} of {migration} was replaced by run {current}")
    return Hidden(Snapshot.parse(snapshot), xid)


@cache
def _statements(migration: str, gitlab_schema: str) -> tuple[bytes, bytes]:
    """Return both statements with their values, cached since they are the same in every transaction."""
    share = _SHARE.format(ownership_key(gitlab_schema), migration_key(migration))
    look = _LOOK.format(recorded=_RECORDED.format(gitlab_schema=gitlab_schema, migration=migration))
    return share.as_bytes(None), look.as_bytes(None)


def own(cursor: psycopg.Cursor[Any], *, gitlab_schema: str, database: str) -> None:
    """Take only the ownership lock in the cursor's transaction, for writes that apply no events.

    Raises NewerFormat and OwnershipMoved as `hold` does.
    """
    cursor.execute(_SHARE_OWNERSHIP, (ownership_key(gitlab_schema),))
    ask(cursor, gitlab_schema=gitlab_schema, database=database)


def ask(cursor: psycopg.Cursor[Any], *, gitlab_schema: str, database: str, migration: str | None = None) -> Wishes:
    """Read the owner without a lock, so that it may change at once; return what an operator wants of `migration`.

    Raises NewerFormat and OwnershipMoved as `hold` does.
    """
    recorded = _RECORDED.format(gitlab_schema=gitlab_schema, migration=migration)
    row = cursor.execute(_OWNER.format(recorded=recorded)).fetchone()
    assert row is not None
    version, by, name, owner, paused, max_rate, transaction_ms = row
    table_format.known(version, by, database)
    require_owner(name, owner, gitlab_schema, database)
    return Wishes(bool(paused), max_rate, transaction_ms)


def require_declaration(migration: str, recorded: str | None, declared: str) -> None:
    """Raise DeclarationChanged unless `migration` still declares the recorded gitlab schema."""
    if recorded != declared:
        raise DeclarationChanged(f"{migration} was started for gitlab schema {recorded}, but now declares {declared}")


def require_owner(name: str | None, owner: str | None, gitlab_schema: str, database: str) -> None:
    """Raise OwnershipMoved unless the database's recorded `name` is `database` and it is the owner."""
    if name != database:
        raise OwnershipMoved(f"the settings call this database {database}, but it is recorded as {name}")
    if owner is None:
        raise OwnershipMoved(
            f"database {database} has no owner recorded for {gitlab_schema}",
            remedy=f"if it should own it, list {gitlab_schema} under databases.{database}.gitlab_schemas",
        )
    if owner != database:
        raise OwnershipMoved(f"{gitlab_schema} is owned by {owner}, not by {database}")
