"""Which migrations there are: every module in consumers/migrations is looked at, no list is kept."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import ModuleType

import consumers.migrations
from consumers import owning
from consumers.migration import Migration, Shared
from infra.settings import Settings
from schemas.errors import HeadraceError, UsageError
from schemas.gitlab_schemas import GITLAB_SHARED


class DuplicateMigration(HeadraceError):
    """Rename one of the two: a migration's name is its consumer group and its key in the ledger."""


@cache
def migrations() -> Mapping[str, type[Migration]]:
    """Return name → class of every migration. Raises DuplicateMigration."""
    return found_in(consumers.migrations)


def found_in(package: ModuleType) -> dict[str, type[Migration]]:
    """Return name → class of every migration in the modules of `package`. Raises DuplicateMigration."""
    found: dict[str, type[Migration]] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            # A class that was only imported there belongs to the module that defines it.
            if issubclass(member, Migration) and not inspect.isabstract(member):
                if member.__module__ != module.__name__:
                    continue
                if other := found.get(member.name):
                    raise DuplicateMigration(
                        f"two migrations are called {member.name}: in {other.__module__} and {module.__name__}"
                    )
                found[member.name] = member
    return found


def migration_class(name: str) -> type[Migration]:
    """Return the migration called `name`; raises UsageError, listing those there are."""
    known = migrations()
    try:
        return known[name]
    except KeyError:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"no migration is called {name!r}", remedy=f"{hint}there: {', '.join(sorted(known)) or 'none'}"
        ) from None


def configured(settings: Settings, name: str) -> Migration:
    """Return the migration called `name` with its options. Raises UsageError or SettingsError."""
    return migration_class(name).configure(settings.migration(name))


def own_tables() -> dict[str, str]:
    """Return gitlab schema → the statements that make the own tables of the migrations that write it."""
    made: dict[str, str] = {}
    for kind in migrations().values():
        if kind.own_tables:
            made[kind.gitlab_schema] = f"{made.get(kind.gitlab_schema, '')}{kind.own_tables.strip()}\n"
    return made


def listing(settings: Settings, gitlab_schema: str) -> list[str]:
    """Return the names of the databases whose settings list `gitlab_schema`."""
    return [name for name, database in settings.databases.items() if gitlab_schema in database.gitlab_schemas]


def target_database(settings: Settings, migration: type[Migration]) -> str:
    """Return the name of the database that the migration writes.

    It is the one in the migration's settings, else the only one whose `gitlab_schemas` has the migration's, else of
    several the one that owns it by its own rows: so a member that is started again follows a switchover. Raises
    UsageError, naming the choices, when that is none or several, and OwnershipMoved while a switchover is under way.
    """
    name, wanted = migration.name, migration.gitlab_schema
    if wanted == GITLAB_SHARED and migration.shared is Shared.REFUSED:
        raise UsageError(
            f"{name} works on gitlab_shared tables, which every database has, and does not say that it may run "
            "once for each",
            remedy="declare `shared = Shared.PER_DATABASE` in the migration if that is what it should do",
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
    if choices and (owner := owning.owning_database(settings, choices, wanted)) is not None:
        return owner
    if not choices:
        raise UsageError(
            f"no database in the settings lists {wanted}, which {name} writes",
            remedy="add it to gitlab_schemas of the database that owns it "
            f"(databases there: {', '.join(sorted(settings.databases)) or 'none'})",
        )
    raise UsageError(
        f"{wanted}, which {name} writes, is listed by several databases: {', '.join(sorted(choices))}",
        remedy=f"set migrations.{name}.database to one of them",
    )
