"""Pauses and resumes a migration through its database, which the running consumers poll."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from consumers.contract.migration import Migration
from infra.postgres import connect
from infra.postgres.advisory_locks import exclude, holders, migration_key
from infra.postgres.control import ensure_control_schema
from infra.settings.model import Settings
from infra.state.history import Actor, OperatorAction, record_action
from schemas.errors import HeadraceError

PATIENCE_SECONDS: Final = 10.0
"""How long pausing waits for transactions in progress before it reports them."""


class Locked(HeadraceError):
    """Nothing was changed; find the session that holds the lock in pg_locks, then run the command again."""


class StillUnderWay(HeadraceError):
    """No new transaction begins; run `headrace pause` again to check that it has ended, or terminate that session."""


def set_paused(
    settings: Settings,
    migration: type[Migration],
    database: str,
    paused: bool,
    seconds: float = PATIENCE_SECONDS,
    *,
    actor: Actor | None = None,
) -> None:
    """Pause or resume every consumer of `migration`, and record who did. Idempotent.

    After its commit no transaction begins that writes. When this returns after pausing, none is in progress either:
    it raises StillUnderWay, which names the sessions, if one takes longer than `seconds`; the migration is paused even
    then. Resuming also clears a recorded failure.
    """
    section = settings.database(database)
    with connect.session(section, name=f"pause {migration.name}") as connection:
        ensure_control_schema(connection, database, section.gitlab_schemas, prefix=settings.prefix)
        # Visible to all sessions at once, even while a synchronous standby is down.
        connection.execute("SET synchronous_commit = local")
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{max(1, int(seconds * 1000))}ms",))
        try:
            with connection.transaction():
                connection.execute(
                    "INSERT INTO headrace.migrations AS m (name, gitlab_schema, paused)"
                    " VALUES (%(name)s, %(schema)s, %(paused)s)"
                    " ON CONFLICT (name) DO UPDATE SET paused = excluded.paused,"
                    " failed = CASE WHEN excluded.paused THEN m.failed END",
                    {"name": migration.name, "schema": migration.gitlab_schema, "paused": paused},
                )
                record_action(
                    connection, OperatorAction.PAUSE if paused else OperatorAction.RESUME, [migration.name], actor
                )
        except psycopg.errors.LockNotAvailable:
            raise Locked(
                f"cannot {'pause' if paused else 'resume'} {migration.name}: another session holds a lock on its row of"
                f" headrace.migrations in {database}"
            ) from None
        if paused:
            _wait_for_transactions(connection, migration.name)


def _wait_for_transactions(connection: psycopg.Connection[Any], migration: str) -> None:
    """Wait for the migration's transactions in progress, up to the session's lock_timeout."""
    key = migration_key(migration)
    try:
        with connection.transaction():
            exclude(connection, [key])
    except psycopg.errors.LockNotAvailable:
        sessions = "; ".join(holders(connection, key))
        if sessions:
            raise StillUnderWay(
                f"{migration} is paused, but an earlier transaction is still in progress: {sessions}"
            ) from None


def is_paused(settings: Settings, migration: type[Migration], database: str) -> bool:
    """Return whether an operator paused `migration`; one that never started is not paused."""
    section = settings.database(database)
    with connect.session(section, name=f"pause {migration.name}") as connection:
        ensure_control_schema(connection, database, section.gitlab_schemas, prefix=settings.prefix)
        row = connection.execute("SELECT paused FROM headrace.migrations WHERE name = %s", (migration.name,)).fetchone()
    return bool(row and row[0])
