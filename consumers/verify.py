"""What is left of a migration, asked from the database and from nothing else."""

from __future__ import annotations

from consumers import contract_checks
from consumers.migration import Migration
from infra import postgres
from infra.settings import Settings
from schemas.errors import HeadraceError


class RowsLeft(HeadraceError):
    """Let the consumer catch up, see `headrace status` and `headrace parked list`, then verify again."""


def remaining(settings: Settings, migration: Migration, database: str) -> int:
    """Return how many rows are left to change. Writes nothing: the server would refuse it."""
    dsn = settings.database(database).dsn.get_secret_value()
    with (
        postgres.translated(dsn),
        postgres.connect(dsn, name=f"verify {migration.name}") as connection,
        connection.transaction(),
        connection.cursor() as cursor,
    ):
        cursor.execute("SET TRANSACTION READ ONLY")
        return contract_checks.remaining(migration, cursor)
