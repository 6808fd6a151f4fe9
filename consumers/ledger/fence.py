"""Makes sure in every transaction that applies events: this database owns the gitlab schema, the run is current.

Two advisory locks are shared first, then the rows are read: under a snapshot that is taken after the locks, so that who
changed one of them (a switchover, a pause, a replay), and held its lock alone while it did, is seen. The locks are kept
until the transaction ends, and write nothing: a switchover waits for what is under way, and nothing is written after it
(promise 3). The same look says which transactions this one does not see yet (promise 1).
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import psycopg
from psycopg import sql

from infra.postgres import table_format
from infra.postgres.advisory_locks import migration_key, ownership_key
from schemas.errors import HeadraceError, OwnershipMoved, Refused
from schemas.xid_snapshot import Hidden, Snapshot

_SHARE: Final = sql.SQL("SELECT pg_advisory_xact_lock_shared({}), pg_advisory_xact_lock_shared({})")
"""The gitlab schema's before the migration's, always: who waits for the one holds the other up for nobody."""
_SHARE_OWNERSHIP: Final = "SELECT pg_advisory_xact_lock_shared(%s)"
_LOOK: Final = sql.SQL("""
    SELECT d.format, d.format_by, d.name, o.owner, m.gitlab_schema, m.run, m.paused, m.failed,
           pg_current_snapshot()::text, pg_current_xact_id()::text::bigint,
           set_config('headrace.fenced', 'yes', true)
      FROM (SELECT) AS always
      LEFT JOIN headrace.database d ON true
      LEFT JOIN headrace.schema_ownership o ON o.gitlab_schema = {gitlab_schema}
      LEFT JOIN headrace.migrations m ON m.name = {migration}
""")
"""The transaction's own id, which it takes for the ledger anyway, is given out after the snapshot: see Hidden.

The setting ends with the transaction: `contract_checks.require_held` asks for it after a migration's writes.
"""
_OWNER: Final = """
    SELECT d.format, d.format_by, d.name, o.owner
      FROM (SELECT) AS always
      LEFT JOIN headrace.database d ON true
      LEFT JOIN headrace.schema_ownership o ON o.gitlab_schema = %(gitlab_schema)s
"""


class Paused(HeadraceError):
    """Go on with `headrace resume`."""


class Failed(HeadraceError):
    """Correct the cause, then resume it with `headrace resume`, or run it again with `headrace replay`."""


class RunReplaced(HeadraceError):
    """A replay began a new run; the member reads its position anew."""


class DeclarationChanged(Refused):
    """Begin a run by the new declaration with `headrace replay`; its topics are those of the new gitlab schema."""


def hold(cursor: psycopg.Cursor[Any], *, migration: str, run: int, gitlab_schema: str, database: str) -> Hidden:
    """Lock, within the cursor's transaction, what makes a write of `migration` right at this instant.

    Called first in each apply transaction, at READ COMMITTED. Returns the transactions that this one does not see yet:
    an event of one of them must not be applied by it. Raises NewerFormat when the tables have been upgraded by a newer
    headrace, OwnershipMoved when this is not the database called
    `database` or it does not own `gitlab_schema`, DeclarationChanged when the migration was begun for another one,
    Paused when an operator paused it, Failed when it failed (see
    circuit_breaker), RunReplaced when `run` is not the current one.
    The caller rolls back then, and nothing was written.
    """
    share, look = _statements(migration, gitlab_schema)
    cursor.execute(share, prepare=True)
    row = cursor.execute(look, prepare=True).fetchone()
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
    """Return both statements with their values in them: they are the same in every transaction, so made once."""
    share = _SHARE.format(ownership_key(gitlab_schema), migration_key(migration))
    look = _LOOK.format(gitlab_schema=gitlab_schema, migration=migration)
    return share.as_bytes(None), look.as_bytes(None)


def own(cursor: psycopg.Cursor[Any], *, gitlab_schema: str, database: str) -> None:
    """Lock the ownership alone within the cursor's transaction, for what is no write of a run's events.

    Raises NewerFormat and OwnershipMoved as `hold` does.
    """
    cursor.execute(_SHARE_OWNERSHIP, (ownership_key(gitlab_schema),))
    row = cursor.execute(_OWNER, {"gitlab_schema": gitlab_schema}).fetchone()
    assert row is not None
    version, by, name, owner = row
    table_format.known(version, by, database)
    require_owner(name, owner, gitlab_schema, database)


def require_declaration(migration: str, recorded: str | None, declared: str) -> None:
    """Raise DeclarationChanged unless the gitlab schema on record is that which `migration` declares now."""
    if recorded != declared:
        raise DeclarationChanged(f"{migration} was begun for gitlab schema {recorded}, and declares {declared} now")


def require_owner(name: str | None, owner: str | None, gitlab_schema: str, database: str) -> None:
    """Raise OwnershipMoved unless the database that is on record as `name` is the one meant, and the owner."""
    if name != database:
        raise OwnershipMoved(f"the settings call this database {database}, but it is on record as {name}")
    if owner is None:
        raise OwnershipMoved(
            f"nobody owns {gitlab_schema} in database {database}",
            remedy=f"list {gitlab_schema} under databases.{database}.gitlab_schemas if that database should",
        )
    if owner != database:
        raise OwnershipMoved(f"{gitlab_schema} is owned by {owner}, not by {database}")
