"""External work that a migration gave up: listed with the dead letters, and retried on an operator's request.

It is not an event and not in a topic: the migration keeps it in its own tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection

from consumers.contract import contract_checks
from consumers.contract.external import WorkStatus
from consumers.contract.migration import Migration
from consumers.ledger import fence
from consumers.ledger.progress import LOCALLY_DURABLE, Ledger
from infra.postgres import connect
from infra.postgres.control import tables_made
from infra.settings.model import Settings
from infra.state.history import Actor, OperatorAction, record_action
from schemas.errors import HeadraceError


@dataclass(frozen=True, slots=True)
class GivenUp:
    """One unit of work: its name, by which an operator selects it, the reason, and since when."""

    name: str
    reason: str
    since: datetime


class WorkGivenUp(HeadraceError):
    """See `headrace dead-letters list`, fix what it names, then `headrace dead-letters retry`."""


def read_work_status(connection: Connection, migration: Migration) -> WorkStatus:
    """Return the progress of a migration's external work; zero if it never ran. Writes nothing."""
    if not migration.own_tables:
        return WorkStatus()
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION READ ONLY")
        if not _has_run(connection, migration):
            return WorkStatus()
        return contract_checks.work_status(migration, cursor, WorkStatus)


def count_given_up(settings: Settings, migration: Migration, database: str) -> int:
    """Return how much of a migration's work was given up. Writes nothing."""
    with connect.session(settings.database(database), name=f"verify {migration.name}") as connection:
        return read_work_status(connection, migration).given_up


def read_given_up(settings: Settings, migration: Migration, database: str) -> list[GivenUp]:
    """Return what `migration` gave up; nothing if it never ran. Writes nothing."""
    if not migration.own_tables:
        return []
    with (
        connect.session(settings.database(database), name=f"dead letters {migration.name}") as connection,
        connection.transaction(),
        connection.cursor() as cursor,
    ):
        cursor.execute("SET TRANSACTION READ ONLY")
        if not _has_run(connection, migration):
            return []
        return [GivenUp(*row) for row in contract_checks.given_up(migration, cursor)]


def take_up(
    settings: Settings, migration: Migration, database: str, names: Sequence[str], actor: Actor | None = None
) -> int:
    """Make consumers retry `names`, and return how many there were. Idempotent.

    Raises OwnershipMoved or Paused as an apply transaction does, with nothing changed.
    """
    with connect.session(settings.database(database), name=f"dead letters {migration.name}") as connection:
        run = Ledger(migration.name, migration.gitlab_schema, "").begin(connection)
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute(LOCALLY_DURABLE)
            fence.hold(
                cursor,
                migration=migration.name,
                run=run,
                gitlab_schema=migration.gitlab_schema,
                database=database,
            )
            taken = contract_checks.take_up(migration, connection.cursor(), names)
            if taken:
                # There is work again: a consumer that starts must not find the migration complete.
                cursor.execute("UPDATE headrace.migrations SET completed_at = NULL WHERE name = %s", (migration.name,))
                record_action(connection, OperatorAction.RETRY, [migration.name], actor, taken_up=taken)
            return taken


def _has_run(connection: Connection, migration: Migration) -> bool:
    tables = [f"headrace.{table}" for table in tables_made(migration.own_tables)]
    row = connection.execute("SELECT count(to_regclass(t)) FROM unnest(%s::text[]) AS t", (tables,)).fetchone()
    return row == (len(tables),)
