"""Installs the triggers of `headrace guard`, in one database or on both sides of a switchover, and prints their SQL."""

from __future__ import annotations

import threading
from typing import Any

import psycopg

from infra.guard import write_guard as trigger
from infra.postgres import connect
from infra.settings.model import Settings
from infra.state.history import Actor, operator
from producers.switchover.endpoints import Move
from schemas.errors import Refused, UsageError
from schemas.gitlab_schemas import PER_DATABASE


def install(
    connection: psycopg.Connection[Any],
    settings: Settings,
    database: str,
    gitlab_schemas: tuple[str, ...],
    *,
    seconds: float,
    stop: threading.Event,
    actor: Actor | None = None,
) -> dict[str, list[str]]:
    """Install the trigger on the tables of `gitlab_schemas` in the connected database; return new and guarded tables.

    Raises UsageError for a gitlab schema without tables there, and the errors of `infra.guard.write_guard.install`.
    """
    done_by = actor or operator()
    report: dict[str, list[str]] = {"installed": [], "already": []}
    for gitlab_schema, tables in _by_schema(connection, settings, database, gitlab_schemas).items():
        new = trigger.install(connection, gitlab_schema, tables, seconds=seconds, stop=stop, actor=done_by)
        report["installed"] += new
        report["already"] += [table for table in tables if table not in new]
    return report


def install_on_both_sides(
    settings: Settings, move: Move, *, seconds: float, stop: threading.Event, actor: Actor | None = None
) -> None:
    """Install the trigger on both sides of a switchover; a standby gets it from the old side.

    Called when the two sides are verified, before anything is closed. Raises the errors of `install`.
    """
    for name in (move.source, move.destination):
        with connect.session(settings.database(name), name=f"guard {name}") as connection:
            if not connect.is_standby(connection):
                install(connection, settings, name, move.gitlab_schemas, seconds=seconds, stop=stop, actor=actor)


def script(
    connection: psycopg.Connection[Any],
    settings: Settings,
    database: str,
    gitlab_schemas: tuple[str, ...],
    *,
    remove: bool = False,
) -> str:
    """Return the command's SQL for an administrator; every statement is idempotent."""
    lines = [
        f"-- Database {database}. A statement fails while its table is in use; run all again until none fails.",
        "SET lock_timeout = '200ms';",
    ]
    if remove:
        for table, gitlab_schema in trigger.present(connection).items():
            if not gitlab_schemas or gitlab_schema in gitlab_schemas:
                lines.append(trigger.removal_sql(table).as_string(connection) + ";")
        if not gitlab_schemas:
            lines.append(trigger.FUNCTION_REMOVAL + ";")
        return "\n".join(lines)
    lines.append(trigger.function_sql())
    for gitlab_schema, tables in _by_schema(connection, settings, database, gitlab_schemas).items():
        for table in tables:
            lines += [each.as_string(connection) + ";" for each in trigger.trigger_sql(gitlab_schema, table)]
    return "\n".join(lines)


def require_primary(connection: psycopg.Connection[Any], database: str) -> None:
    """Raise Refused for a standby, which has only its primary's triggers."""
    if connect.is_standby(connection):
        raise Refused(f"{database} is a standby", remedy="install the guard on its primary; the standby replicates it")


def _by_schema(
    connection: psycopg.Connection[Any], settings: Settings, database: str, gitlab_schemas: tuple[str, ...]
) -> dict[str, list[str]]:
    found = trigger.tables_in(connection, settings, database, gitlab_schemas)
    grouped = {each: [table for table, label in found.items() if label == each] for each in gitlab_schemas}
    if own := PER_DATABASE.intersection(gitlab_schemas):
        raise UsageError(f"{min(own)} needs no guard: every database has its own", remedy="omit it")
    for gitlab_schema, tables in grouped.items():
        if not tables:
            raise UsageError(
                f"no table of database {database} is known to belong to {gitlab_schema}",
                remedy=f"name its tables under [databases.{database}.table_schemas]",
            )
    return grouped
