"""Backfills the migration status of the registry's repositories: `native`, created on the database.

Seed 004: the column is added nullable and without a default, then every row is filled, then NULL is forbidden. For
another backfill, copy this class and change its attributes.
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
