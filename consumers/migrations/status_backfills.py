"""Gives the registry's repositories a migration status: those without one were created on the database, `native`.

Seed 004: the column comes without a default and may be empty at first; then every row gets its status; then none may
be without. A copy of this class with other words is another backfill.
"""

from consumers.contract.backfill import Backfill


class StatusBackfills(Backfill):
    """Set the status of repositories that have none."""

    name = "status_backfills"
    gitlab_schema = "registry"
    table = "public.repositories"
    key = (("top_level_namespace_id", "bigint"), ("id", "bigint"))
    column, column_type = "migration_status", "text"
    value = "native"
    checks = (("length", "char_length(migration_status) <= 255"),)
