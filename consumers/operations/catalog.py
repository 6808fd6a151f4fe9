"""Finds the migrations: headrace's own, those of `plugin_paths`, of installed packages, and of the settings.

Every module of a folder is scanned, so that no list has to be kept.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path

import consumers.migrations
from consumers.contract.discovery import (
    BUILT_IN,
    Broken,
    BrokenMigration,
    Candidate,
    Discovered,
    discover,
    in_package,
    place_of,
)
from consumers.contract.migration import Migration, Shared
from consumers.contract.plugins import in_folder, installed
from consumers.declared.declaration import Declaration, declarations
from consumers.ledger import owner_lookup
from infra.settings.mistakes import close_to
from infra.settings.model import Settings
from schemas import gitlab_schemas as labels
from schemas.errors import UsageError
from schemas.gitlab_schemas import PER_DATABASE

Owning = Callable[[Settings, Sequence[str], str], str | None]
"""Asks which of some databases owns a gitlab schema, as owner_lookup.owning_database."""


@cache
def _discovered(folders: tuple[Path, ...], declared: tuple[Declaration, ...]) -> Discovered:
    return discover(
        chain(in_package(consumers.migrations, BUILT_IN), *map(in_folder, folders), installed(), _declared(declared))
    )


def _declared(found: tuple[Declaration, ...]) -> Iterator[Candidate | Broken]:
    if found:
        from consumers.declared.sections import candidates  # noqa: PLC0415 - the settings seldom declare one

        yield from candidates(found)


@cache
def _own(name: str) -> type[Migration] | None:
    """Return headrace's own migration of this name, without the others: its module has the same name."""
    return discover(in_package(consumers.migrations, BUILT_IN, only=name)).migrations.get(name)


def _found(settings: Settings) -> Discovered:
    return _discovered(settings.plugin_paths, declarations(settings))


def migrations(settings: Settings) -> Mapping[str, type[Migration]]:
    """Return name → class of every migration that can run."""
    return _found(settings).migrations


def origins(settings: Settings) -> Mapping[str, str]:
    """Return name → origin of every migration that can run.

    It is a folder, a distribution with its version, `file:line` of a section of the settings, or BUILT_IN.
    """
    return _found(settings).origins


def broken(settings: Settings) -> Mapping[str, Broken]:
    """Return name → the problem of every migration that cannot run.

    Includes those whose gitlab schema is unknown to headrace and to the settings.
    """
    found = dict(_found(settings).broken)
    listed = {label for database in settings.databases.values() for label in database.gitlab_schemas}
    known = labels.KNOWN | listed
    for name, kind in migrations(settings).items():
        if kind.gitlab_schema not in known:
            found[name] = replace(_of_unknown_schema(kind, known), origin=origins(settings).get(name, BUILT_IN))
    return found


def _of_unknown_schema(kind: type[Migration], known: Collection[str]) -> Broken:
    label = kind.gitlab_schema
    return Broken(
        kind.name,
        place_of(kind),
        f"class {kind.__name__}: unknown gitlab schema {label}{close_to(label, known)}",
        'for example: gitlab_schema = "gitlab_main"; list a schema of your own in gitlab_schemas of its database',
    )


def migration_class(settings: Settings, name: str) -> type[Migration]:
    """Return the migration called `name`; raises UsageError, which lists the known ones, and BrokenMigration."""
    if (own := _own(name)) is not None:
        return own  # no other migration can have its name
    known = migrations(settings)
    try:
        return known[name]
    except KeyError:
        if (entry := _found(settings).broken.get(name)) is not None:
            raise BrokenMigration(f"migration {name}: {entry.place}: {entry.problem}", remedy=entry.remedy) from None
        close = difflib.get_close_matches(name, [*known, *_found(settings).broken], n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"unknown migration {name!r}", remedy=f"{hint}known: {', '.join(sorted(known)) or 'none'}"
        ) from None


def configured(settings: Settings, name: str) -> Migration:
    """Return the migration `name` with its options. Raises UsageError or SettingsError."""
    return migration_class(settings, name).configure(settings.migration(name))


def listing(settings: Settings, gitlab_schema: str) -> list[str]:
    """Return the names of the databases whose settings list `gitlab_schema`."""
    return [name for name, database in settings.databases.items() if gitlab_schema in database.gitlab_schemas]


def target_database(
    settings: Settings, migration: type[Migration], owning: Owning = owner_lookup.owning_database
) -> str:
    """Return the name of the database that the migration writes.

    It is the one in the migration's settings, else the only one whose `gitlab_schemas` has the migration's, else the
    one of several that owns it by its own rows: so a restarted consumer follows a switchover. Raises UsageError, which
    names the choices, unless there is exactly one, and OwnershipMoved during a switchover. `owning` asks the databases.
    """
    name, wanted = migration.name, migration.gitlab_schema
    if wanted in PER_DATABASE and migration.shared is Shared.REFUSED:
        raise UsageError(
            f"{name} works on {wanted} tables, which every database has, and does not declare that it runs once "
            "per database",
            remedy="declare `shared = Shared.PER_DATABASE` in the migration if it should",
        )
    chosen = settings.migration(name).database
    if chosen is not None:
        if wanted not in settings.database(chosen).gitlab_schemas:
            raise UsageError(
                f"{name} writes {wanted}, which database {chosen} does not list",
                remedy=f"add {wanted} to databases.{chosen}.gitlab_schemas or set migrations.{name}.database",
            )
        return chosen
    choices = listing(settings, wanted)
    if len(choices) == 1:
        return choices[0]
    # Of those that every database has, each is the owner of its own.
    may_move = choices and wanted not in PER_DATABASE
    if may_move and (owner := owning(settings, choices, wanted)) is not None:
        return owner
    if not choices:
        raise UsageError(
            f"no database in the settings lists {wanted}, which {name} writes",
            remedy=f"{_meant(wanted)}add it to gitlab_schemas of the database that owns it "
            f"(databases in the settings: {', '.join(sorted(settings.databases)) or 'none'})",
        )
    raise UsageError(
        f"{wanted}, which {name} writes, is listed by several databases: {', '.join(sorted(choices))}",
        remedy=f"set migrations.{name}.database to one of them",
    )


def _meant(label: str) -> str:
    """Return the start of a remedy that suggests a gitlab schema with a name like `label`, which is unknown."""
    close = difflib.get_close_matches(label, sorted(labels.KNOWN), n=1) if label not in labels.KNOWN else []
    return f"did you mean {close[0]}? Else " if close else ""
