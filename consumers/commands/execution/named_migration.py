"""Finds the migration that a command names."""

from __future__ import annotations

from pathlib import Path

from consumers.contract.migration import Migration
from consumers.operations import catalog
from infra.service import log
from infra.settings.file import load_settings
from infra.settings.model import Settings


def named_migration(migration: str, config: Path | None) -> tuple[Settings, type[Migration], str]:
    """Return the settings, the migration and its database; configures the log."""
    settings = load_settings(config)
    kind = catalog.migration_class(settings, migration)
    log.configure(settings.log)
    return settings, kind, catalog.target_database(settings, kind)
