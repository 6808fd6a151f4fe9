"""Checks migrations for `headrace check`: what prevents one from running, and what would speed up a slow count."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

import psycopg

from consumers.contract import contract_checks, counting
from consumers.contract.migration import Migration
from consumers.contract.suggested_index import LIMIT_MS, offer
from consumers.delivery.topics import WALKED
from consumers.operations import catalog, migration_sections
from consumers.operations import rights as consumer_rights
from consumers.operations.left_out import advise_of_left_out
from infra.cli.advice import Advice
from infra.kafka import clients, denials
from infra.postgres import connect
from infra.rights import kafka_rights, privileges
from infra.settings.mistakes import close_to
from infra.settings.model import Settings, switches
from infra.settings.table_labels import TableLabels
from schemas.errors import HeadraceError, UsageError

_TABLE: Final = """
SELECT c.relispartition,
       ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute a
              WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid
                AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
 WHERE n.nspname OPERATOR(pg_catalog.=) %s AND c.relname OPERATOR(pg_catalog.=) %s
   AND c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p']::"char"[])
"""
_TABLES: Final = """
SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
 WHERE c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p']::"char"[])
   AND n.nspname OPERATOR(pg_catalog.<>) ALL (ARRAY['pg_catalog', 'information_schema', 'headrace'])
"""
_RUN: Final = "SELECT FROM headrace.migrations WHERE name OPERATOR(pg_catalog.=) %s"


def advise(settings: Settings, names: Collection[str] = (), limit_ms: int = LIMIT_MS) -> Iterator[Advice]:
    """Yield what prevents migrations from running, and what would speed up the count of their rows.

    With `names`, only for those migrations. Raises UsageError for an unknown name.

    A migration is meant to run if it is in `names`, the settings have a section for it, or a run of it is recorded:
    then a problem blocks. For other migrations it is only reported. A database that cannot be queried is reported by
    the check of its source.
    """
    for name in names:
        catalog.migration_class(settings, name)
    yield from _of_files(settings)
    yield from _of_names(settings)
    reachable = _reachable(settings)
    broken = catalog.broken(settings)
    for name, kind in sorted(catalog.migrations(settings).items()):
        if name not in broken and (not names or name in names):
            yield from _of_migration(settings, kind, limit_ms, named=name in names, reachable=reachable)


def _of_files(settings: Settings) -> Iterator[Advice]:
    for name, entry in sorted(catalog.broken(settings).items()):
        yield Advice(f"migrations.{name}", f"{entry.place}: {entry.problem}", (), entry.remedy, blocks=True)


def _of_names(settings: Settings) -> Iterator[Advice]:
    """Yield the settings sections and environment variables of unknown migrations."""
    for each in migration_sections.unknown(settings):
        yield Advice(each.where, each.problem, (), each.remedy, blocks=True)


def _reachable(settings: Settings) -> bool:
    """Whether Kafka responds; if not, another check reports it."""
    try:
        clients.ensure_reachable(settings.kafka)
    except HeadraceError:
        return False
    return True


def _of_migration(
    settings: Settings, kind: type[Migration], limit_ms: int, *, named: bool, reachable: bool
) -> Iterator[Advice]:
    name = kind.name
    configured = named or name in settings.migrations or name in switches().values()
    try:
        if not settings.migration(name).enabled:
            return
        migration = kind.configure(settings.migration(name))
        database = catalog.target_database(settings, kind)
    except UsageError as error:
        # Without a name or a section, a migration that no database belongs to is not meant to run.
        if configured:
            yield Advice(f"migrations.{name}", error.problem, (), error.remedy, blocks=True)
        return
    except HeadraceError:
        return
    try:
        with connect.session(settings.database(database), name=f"check {name}") as connection:
            meant = configured or _has_run(connection, name)
            if reachable:
                yield from _of_acls(settings, kind, database, meant=meant)
            yield from _of_privileges(connection, kind, meant=meant)
            yield from _of_tables(connection, settings, kind, database, meant=meant)
            connect.search(connection, settings.database(database).search_path)
            yield from _of_validity(connection, migration, meant=meant)
            yield from _of_work(settings, migration, meant=meant)
            yield from _of_count(connection, migration, limit_ms, meant=meant)
    except (HeadraceError, psycopg.Error):
        return


def _has_run(connection: psycopg.Connection[Any], name: str) -> bool:
    try:
        return connection.execute(_RUN, (name,)).fetchone() is not None
    except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
        return False


def _of_privileges(connection: psycopg.Connection[Any], kind: type[Migration], *, meant: bool) -> Iterator[Advice]:
    """Yield the privileges that the consumers' role lacks in the database."""
    if lacks := privileges.lacking(connection, list(consumer_rights.privileges(kind))):
        problem = f"role {connection.info.user} lacks {'; '.join(lacks)}"
        remedy = f"grant it: `headrace init --sql {kind.name}` prints what is needed"
        yield Advice(f"migrations.{kind.name}", problem, (), remedy, blocks=meant)


def _of_acls(settings: Settings, kind: type[Migration], database: str, *, meant: bool) -> Iterator[Advice]:
    """Yield the ACLs that the consumers lack in Kafka."""
    try:
        found = kafka_rights.lacking(settings.kafka, *consumer_rights.needed(settings, kind, database))
    except HeadraceError:
        return  # reported by another check
    if found:
        problem = f"Kafka denies {denials.principal(settings.kafka)} {kafka_rights.listed(found)}"
        remedy = f"grant it: `headrace init --acls {kind.name}` prints what is needed"
        yield Advice(f"migrations.{kind.name}", problem, (), remedy, blocks=meant)


def _of_tables(
    connection: psycopg.Connection[Any], settings: Settings, kind: type[Migration], database: str, *, meant: bool
) -> Iterator[Advice]:
    """Yield the tables that the migration reads but no producer captures, and the columns that they lack."""
    where, section = f"migrations.{kind.name}", settings.database(database)
    labels = TableLabels(database, section)
    off = f"or disable the migration with {where}.enabled = false"
    for table in kind.tables:
        if table == WALKED:
            if not settings.virtual_storages:
                problem = "it reads walks of git storages, but the settings have no [virtual_storages.NAME]"
                yield Advice(where, problem, (), f"add them to the settings, {off}", blocks=meant)
            continue
        found = connection.execute(_TABLE, tuple(table.split(".", 1))).fetchone()
        if found is None:
            names = {f"{schema}.{name}" for schema, name in connection.execute(_TABLES)}
            meant_another = close_to(table, set(filter(section.captures, names)))
            problem = f"it reads table {table}, which database {database} does not have{meant_another}"
            yield Advice(where, problem, (), f"correct its tables, {off}", blocks=meant or bool(meant_another))
        elif section.tables and not (table in section.tables if found[0] else section.captures(table)):
            problem = f"it reads table {table}, which is not captured"
            yield Advice(where, problem, (), f'add "{table}" to databases.{database}.tables, {off}', blocks=meant)
        elif (label := labels.known(table, [kind.gitlab_schema])) not in (None, kind.gitlab_schema):
            problem = f"it reads table {table} as one of {kind.gitlab_schema}, but the table belongs to {label}"
            mapped = f'"{table}" = "{kind.gitlab_schema}" under [databases.{database}.table_schemas]'
            yield Advice(where, problem, (), f"correct its gitlab_schema, or add {mapped}, {off}", blocks=meant)
        elif lacking := [each for each in kind.columns if each not in (*found[1], *kind.optional_columns)]:
            problem = f"it reads column {lacking[0]}, which table {table} does not have{close_to(lacking[0], found[1])}"
            yield Advice(where, problem, (), f"correct its columns, {off}", blocks=meant)
        elif meant and not section.complete_rows:
            yield from advise_of_left_out(connection, where, table, kind.columns)


def _of_validity(connection: psycopg.Connection[Any], migration: Migration, *, meant: bool) -> Iterator[Advice]:
    """Yield why the migration refuses to run in this database."""
    try:
        contract_checks.validate(migration, connection)
    except HeadraceError as error:
        yield Advice(f"migrations.{migration.name}", error.problem, (), error.remedy, blocks=meant)


def _of_work(settings: Settings, migration: Migration, *, meant: bool) -> Iterator[Advice]:
    """Yield what prevents its work outside the database from starting on this machine."""
    try:
        reasons = contract_checks.unready(migration, settings)
    except HeadraceError as error:
        reasons = [error]
    for reason in reasons:
        yield Advice(f"migrations.{migration.name}", reason.problem, (), reason.remedy, blocks=meant)


def _of_count(
    connection: psycopg.Connection[Any], migration: Migration, limit_ms: int, *, meant: bool
) -> Iterator[Advice]:
    """Yield what would help if the server is slow to count the rows that are left."""
    where = f"migrations.{migration.name}"
    for index in migration.suggested_indexes:
        if (found := offer(connection, where, index, limit_ms)) is not None:
            yield found
    if migration.suggested_indexes:
        return
    try:
        counted = counting.count(connection, migration, limit_ms=limit_ms)
    except psycopg.Error:
        raise
    except Exception as error:
        yield Advice(where, counting.failed(error), (), f"see `remaining` of {type(migration).__name__}", blocks=meant)
        return
    if counted.exact is None:
        yield Advice(
            where,
            f"the server takes more than {limit_ms} ms to count the rows that are left",
            counted.plan,
            "an index for its condition may help; declare it in the migration's suggested_indexes, and `headrace check`"
            " prints the statement",
        )
