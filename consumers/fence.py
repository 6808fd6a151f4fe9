"""The lock that every apply transaction takes: this database owns the gitlab schema, and this run is the current.

Held until the transaction ends, so that a switchover, a replay or a pause waits for what is under way, and nothing
is written after it (promise 3).
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

from schemas.errors import HeadraceError, OwnershipMoved

_HOLD: Final = """
    SELECT m.run, m.paused, m.failed, pg_catalog.set_config('headrace.fenced', 'yes', true)
      FROM headrace.migrations m
      JOIN headrace.schema_ownership o ON o.gitlab_schema = m.gitlab_schema
      JOIN headrace.database d ON d.name = o.owner
     WHERE m.name = %(migration)s AND d.name = %(database)s
       FOR SHARE OF m, o, d
"""
"""The setting ends with the transaction: `contract_checks.require_held` asks for it after a migration's writes."""

_OWN: Final = """
    SELECT FROM headrace.schema_ownership o JOIN headrace.database d ON d.name = o.owner
     WHERE o.gitlab_schema = %(gitlab_schema)s AND d.name = %(database)s
       FOR SHARE OF o, d
"""
_OWNER: Final = """
    SELECT o.owner, d.name
      FROM (SELECT) AS always
      LEFT JOIN headrace.schema_ownership o ON o.gitlab_schema = %(gitlab_schema)s
      LEFT JOIN headrace.database d ON true
"""


class Paused(HeadraceError):
    """Go on with `headrace resume`."""


class Failed(HeadraceError):
    """Correct the cause, then `headrace resume`; or begin again with `headrace replay`."""


class RunReplaced(HeadraceError):
    """A replay began a new run; the member reads its position anew."""


def hold(cursor: psycopg.Cursor[Any], *, migration: str, run: int, gitlab_schema: str, database: str) -> None:
    """Lock, within the cursor's transaction, what makes a write of `migration` right at this instant.

    Called first in each apply transaction. Raises OwnershipMoved when this is not the database called `database`
    or it does not own `gitlab_schema`, Paused when an operator paused the migration, Failed when it failed (see
    circuit_breaker), RunReplaced when `run` is not the current one. The caller rolls back then, and nothing was
    written.
    """
    cursor.execute(_HOLD, {"migration": migration, "database": database}, prepare=True)
    row = cursor.fetchone()
    if row is None:
        raise _moved(cursor, gitlab_schema, database)
    if row[1]:
        raise Paused(f"{migration} is paused")
    if row[2] is not None:
        raise Failed(f"{migration} has failed: {row[2]}")
    if row[0] != run:
        raise RunReplaced(f"run {run} of {migration} was replaced by run {row[0]}")


def own(cursor: psycopg.Cursor[Any], *, gitlab_schema: str, database: str) -> None:
    """Lock the ownership alone within the cursor's transaction, for what is no write of a run's events.

    Raises OwnershipMoved as `hold` does.
    """
    cursor.execute(_OWN, {"gitlab_schema": gitlab_schema, "database": database})
    if cursor.fetchone() is None:
        raise _moved(cursor, gitlab_schema, database)


def _moved(cursor: psycopg.Cursor[Any], gitlab_schema: str, database: str) -> OwnershipMoved:
    row = cursor.execute(_OWNER, {"gitlab_schema": gitlab_schema}).fetchone()
    owner, name = row if row is not None else (None, None)
    if name != database:
        return OwnershipMoved(f"the settings call this database {database}, but it is on record as {name}")
    if owner is None:
        return OwnershipMoved(
            f"nobody owns {gitlab_schema} in database {database}",
            remedy=f"list {gitlab_schema} under databases.{database}.gitlab_schemas if that database should",
        )
    return OwnershipMoved(f"{gitlab_schema} is owned by {owner}, not by {database}")
