"""Names the migrations that the settings declare, and the gitlab schemas of their tables, without reading their SQL."""

from __future__ import annotations

from infra.settings.declare import DeclareSettings
from infra.settings.file import place_of_section
from infra.settings.model import Settings
from infra.settings.table_labels import TableLabels
from schemas import gitlab_schemas
from schemas.errors import HeadraceError, UsageError

Declaration = tuple[str, str, str, str]
"""Name, place, gitlab schema, and the section as JSON: what the class depends on, to remember it by."""


def declarations(settings: Settings) -> tuple[Declaration, ...]:
    """Return the migrations that the settings declare, by name. An unknown gitlab schema is empty."""
    return tuple(
        (name, place_of_section(settings, "migrations", name, "declare"), _label(settings, section.declare),
         section.declare.model_dump_json())
        for name, section in sorted(settings.migrations.items())
        if section.declare is not None
    )  # fmt: skip


def schema_of(settings: Settings, table: str) -> str:
    """Return the gitlab schema of `table`: by the settings, else by headrace's list. Raises UsageError."""
    known = _known(settings, table)
    if len(known) == 1:
        return known[0]
    which = f"may belong to {' or '.join(known)}" if known else "has no known gitlab schema"
    remedy = f"choose one: --gitlab-schema {known[0] if known else 'gitlab_main'}"
    raise UsageError(f"table {table} {which}", remedy=remedy)


def _label(settings: Settings, section: DeclareSettings) -> str:
    if section.gitlab_schema is not None:
        return section.gitlab_schema
    known = _known(settings, section.table)
    return known[0] if len(known) == 1 else ""


def _known(settings: Settings, table: str) -> list[str]:
    own: set[str] = set()
    capturing = {name: section for name, section in settings.databases.items() if section.captures(table)}
    for name, database in (capturing or settings.databases).items():
        try:
            label = TableLabels(name, database).known(table)
        except HeadraceError:
            continue  # a dictionary that cannot be read: others report it
        if label is not None and label in database.gitlab_schemas:
            own.add(label)
    return sorted(own or gitlab_schemas.TABLES.get(table, ()))
