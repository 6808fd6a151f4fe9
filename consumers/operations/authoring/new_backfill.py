"""Prepares a declared migration for the settings: checks it on the server, and estimates its rows and its time."""

from __future__ import annotations

import tomllib
from dataclasses import field
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import psycopg
from psycopg import sql

from consumers.contract import contract_checks, counting
from consumers.contract.primary_key import primary_key
from consumers.declared import refusals, statements
from consumers.declared.declared_migration import DeclaredMigration, migration_of
from consumers.declared.sections import require_expressions
from consumers.operations import catalog
from infra.postgres import connect
from infra.settings.declare import DeclareSettings
from infra.settings.description.toml_text import toml_value
from infra.settings.model import MigrationSettings, Settings
from schemas.errors import Refused
from schemas.lazy_dataclass import dataclass

COUNT_MS: Final = 5_000
"""After this the planner's estimate has to do."""


@dataclass(frozen=True)
class Estimate:
    """What is known before anything runs.

    `rows` are left to change, None if unknown, by the planner's statistics if `estimated`. `rate` is in rows per
    second, of `tried` rows that were updated and rolled back; None if there were none. `plan` is that of their update.
    """

    database: str
    rows: int | None
    estimated: bool
    rate: float | None
    tried: int
    plan: tuple[str, ...] = field(default=())

    @property
    def seconds(self) -> float | None:
        """How long the updates take, without commits and pauses."""
        return self.rows / self.rate if self.rows is not None and self.rate else None


def prepared(
    settings: Settings, name: str, section: DeclareSettings, label: str, place: str, *, find_key: bool
) -> tuple[DeclareSettings, Estimate]:
    """Return the section, with the table's primary key if `find_key`, and its estimate.

    Raises UsageError for a mistake in it, and everything that opening the database raises. Writes nothing.
    """
    require_expressions(section)
    kind = migration_of(name, section, label, place)
    database = catalog.target_database(settings, kind)
    with connect.session(settings.database(database), name=f"new {name}") as connection:
        connect.search(connection, settings.database(database).search_path)
        if find_key:
            found = tuple(primary_key(connection, section.table))
            section = section.model_copy(update={"key": found or section.key})
            kind = migration_of(name, section, label, place)
        return section, _estimated(connection, kind, database)


def _estimated(connection: psycopg.Connection[Any], kind: type[DeclaredMigration], database: str) -> Estimate:
    migration, section = kind.configure(MigrationSettings()), kind.declaration
    contract_checks.validate(migration, connection)
    counted = counting.count(connection, migration, limit_ms=COUNT_MS)
    rate: float | None = None
    tried, plan = 0, tuple[str, ...]()
    try:
        with connection.transaction(force_rollback=True), connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", (str(COUNT_MS),))
            keys = refusals.keys_of(cursor, section, refusals.SAMPLE_ROWS)
            columns = [[key] for key in keys] if len(section.key) == 1 else keys
            arrays = [list(column) for column in zip(*columns, strict=True)] or [[] for _ in section.key]
            cursor.execute(sql.SQL("EXPLAIN ") + statements.updating(cursor, section), arrays)
            plan = tuple(str(line) for (line,) in cursor.fetchall())
            began = perf_counter()
            statements.update(cursor, section, keys)
            tried = cursor.rowcount
            rate = tried / (perf_counter() - began) if tried else None
    except psycopg.Error:
        # A row that a constraint refuses becomes a dead letter later; here it only costs the estimate.
        if connection.closed:
            raise
    return Estimate(database, counted.rows, counted.estimated, rate, tried, plan)


def text_of_section(name: str, section: DeclareSettings) -> str:
    """Return the section as TOML."""
    lines = [f"[migrations.{name}.declare]", f"table = {toml_value(section.table)}"]
    if section.gitlab_schema is not None:
        lines.append(f"gitlab_schema = {toml_value(section.gitlab_schema)}")
    if section.key != ("id",):
        lines.append(f"key = {toml_value(section.key)}")
    lines.append(f"where = {toml_value(section.where)}")
    sets = ", ".join(f"{toml_value(column)} = {toml_value(text)}" for column, text in section.set.items())
    lines.append(f"set = {{ {sets} }}")
    if section.prefilter is not None:
        lines.append(f"prefilter = {toml_value(section.prefilter)}")
    return "\n".join(lines) + "\n"


def append(path: Path, text: str) -> None:
    """Append a section to the settings file. Raises Refused, with the file as it was, if it would not be TOML then."""
    try:
        before = path.read_text(encoding="utf-8")
        tomllib.loads(f"{before}\n{text}")
        with path.open("a", encoding="utf-8") as file:
            file.write(("" if before.endswith("\n") or not before else "\n") + "\n" + text)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}", remedy="add the section to it") from error
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{path} cannot have a section more: {error}", remedy="add the keys where they fit") from None
