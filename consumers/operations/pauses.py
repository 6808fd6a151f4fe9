"""Pauses and resumes a migration from anywhere: only its database is needed, running consumers follow by themselves."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from consumers.contract.migration import Migration
from infra.postgres import connect
from infra.postgres.advisory_locks import exclude, holders, migration_key
from infra.postgres.control import ensure_control_schema
from infra.settings.model import Settings
from schemas.errors import HeadraceError

PATIENCE_SECONDS: Final = 10.0
"""How long pausing waits for transactions under way before it names them."""


class Locked(HeadraceError):
    """Nothing was changed; look in pg_locks for who keeps it, then run it again."""


class StillUnderWay(HeadraceError):
    """It ends by itself, and nothing new begins: run `headrace pause` again to see that it has, or end that session."""


def set_paused(
    settings: Settings, migration: type[Migration], database: str, paused: bool, seconds: float = PATIENCE_SECONDS
) -> None:
    """Pause or resume every consumer of `migration`; a duplicate changes nothing.

    From its commit on no transaction begins that writes. When this returns after pausing, none is under way either:
    raises StillUnderWay, naming the sessions, when one that began before takes longer than `seconds`; the migration is
    paused even then. Resuming also takes back that it has failed.
    """
    section = settings.database(database)
    dsn = section.dsn.get_secret_value()
    with connect.translated(dsn), connect.connect(dsn, name=f"pause {migration.name}") as connection:
        ensure_control_schema(connection, database, section.gitlab_schemas, prefix=settings.prefix)
        # Seen by everybody at once, also while a synchronous standby is away.
        connection.execute("SET synchronous_commit = local")
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{max(1, int(seconds * 1000))}ms",))
        try:
            connection.execute(
                "INSERT INTO headrace.migrations AS m (name, gitlab_schema, paused)"
                " VALUES (%(name)s, %(schema)s, %(paused)s)"
                " ON CONFLICT (name) DO UPDATE SET paused = excluded.paused,"
                " failed = CASE WHEN excluded.paused THEN m.failed END",
                {"name": migration.name, "schema": migration.gitlab_schema, "paused": paused},
            )
        except psycopg.errors.LockNotAvailable:
            raise Locked(
                f"{migration.name} cannot be {'paused' if paused else 'resumed'}: another session keeps its row of"
                f" headrace.migrations in {database} locked"
            ) from None
        if paused:
            _wait_for_those_under_way(connection, migration.name)


def _wait_for_those_under_way(connection: psycopg.Connection[Any], migration: str) -> None:
    """Wait for them as long as the session's lock_timeout says."""
    key = migration_key(migration)
    try:
        with connection.transaction():
            exclude(connection, [key])
    except psycopg.errors.LockNotAvailable:
        sessions = "; ".join(holders(connection, key))
        if sessions:
            raise StillUnderWay(
                f"{migration} is paused, but a transaction from before is under way: {sessions}"
            ) from None


def is_paused(settings: Settings, migration: type[Migration], database: str) -> bool:
    """Return whether an operator paused `migration`; what was never started is not."""
    section = settings.database(database)
    dsn = section.dsn.get_secret_value()
    with connect.translated(dsn), connect.connect(dsn, name=f"pause {migration.name}") as connection:
        ensure_control_schema(connection, database, section.gitlab_schemas, prefix=settings.prefix)
        row = connection.execute("SELECT paused FROM headrace.migrations WHERE name = %s", (migration.name,)).fetchone()
    return bool(row and row[0])
