"""Pausing and resuming a migration from anywhere: only its database is needed, running members follow by themselves."""

from __future__ import annotations

from consumers.migration import Migration
from infra import postgres
from infra.control import ensure_control_schema
from infra.settings import Settings


def set_paused(settings: Settings, migration: type[Migration], database: str, paused: bool) -> None:
    """Pause or resume every member of `migration`; a duplicate changes nothing. One that failed is resumed as well.

    When this returns after pausing, no transaction of the migration is under way and none begins.
    """
    section = settings.database(database)
    dsn = section.dsn.get_secret_value()
    with postgres.translated(dsn), postgres.connect(dsn, name=f"pause {migration.name}") as connection:
        ensure_control_schema(connection, database, section.gitlab_schemas)
        connection.execute(
            "INSERT INTO headrace.migrations (name, gitlab_schema, paused) VALUES (%s, %s, %s)"
            " ON CONFLICT (name) DO UPDATE SET paused = excluded.paused,"
            " failed = CASE WHEN excluded.paused THEN headrace.migrations.failed END",
            (migration.name, migration.gitlab_schema, paused),
        )


def is_paused(settings: Settings, migration: type[Migration], database: str) -> bool:
    """Return whether an operator paused `migration`; what was never started is not."""
    section = settings.database(database)
    dsn = section.dsn.get_secret_value()
    with postgres.translated(dsn), postgres.connect(dsn, name=f"pause {migration.name}") as connection:
        ensure_control_schema(connection, database, section.gitlab_schemas)
        row = connection.execute("SELECT paused FROM headrace.migrations WHERE name = %s", (migration.name,)).fetchone()
    return bool(row and row[0])
