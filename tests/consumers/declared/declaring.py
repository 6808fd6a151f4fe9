"""Declarations for tests."""

from __future__ import annotations

from typing import Any

from consumers.declared.declared_migration import DeclaredMigration, migration_of
from infra.settings.declare import DeclareSettings

DECLARED: dict[str, Any] = {
    "table": "public.people",
    "key": ["id"],
    "where": "nick IS NULL",
    "set": {"nick": "lower(name)"},
}


def declare(**changed: Any) -> type[DeclaredMigration]:
    """Return a migration that gives people without a nick their name as one, with these keys of the section changed."""
    section = DeclareSettings.model_validate({**DECLARED, **changed})
    return migration_of("nicks", section, "own", "headrace.toml:5")
