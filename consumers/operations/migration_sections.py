"""Finds mistakes of the settings that only indicators and migrations know, such as a section of none that exists.

A migration whose file or section is broken exists all the same. Where a file cannot even be imported, the names in it
are unknown: a section is then taken as its own if the file's text has the section's name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

from consumers.contract.discovery import Broken
from consumers.contract.migration import InvalidOptions
from consumers.operations import catalog
from infra.health.indicator import Limit, limits
from infra.settings.mistakes import Location, close_to
from infra.settings.model import Settings, switches
from schemas.errors import SettingsError, UsageError
from schemas.lazy_dataclass import dataclass


class UnknownMigration(SettingsError):
    """Correct the name in the settings or the environment, or remove it."""


@dataclass(frozen=True)
class Unknown:
    """A section, or a switch in the environment, of a migration that does not exist; `meant` is a similar name."""

    where: str
    location: Location
    problem: str
    remedy: str
    meant: str | None


def unknown(settings: Settings) -> Iterator[Unknown]:
    """Yield the sections and switches of unknown migrations."""
    broken = catalog.broken(settings)
    known = sorted(catalog.migrations(settings).keys() | broken.keys())
    listed = f"known: {', '.join(known) or 'none'}"
    files = [entry for name, entry in broken.items() if not is_declared(settings, name)]
    named = {name: f"migrations.{name}" for name in settings.migrations}
    for name in sorted(named.keys() - set(known)):
        if not any(_may_define(entry, name) for entry in files):
            problem = f"unknown migration {name}{close_to(name, known)}"
            remedy = f"correct the section's name, or remove it ({listed})"
            yield Unknown(named[name], ("migrations", name), problem, remedy, _similar(name, known))
    for variable, name in sorted(switches().items()):
        if name not in known and not any(_may_define(entry, name) for entry in files):
            problem = f"{variable} is set for the unknown migration {name}{close_to(name, known)}"
            remedy = f"correct its name, or unset it ({listed})"
            yield Unknown("environment", (), problem, remedy, _similar(name, known))


def require_spelt(settings: Settings, migration: str) -> None:
    """Raise UnknownMigration if a section or switch is probably meant for `migration`, under another name.

    A consumer would otherwise start with defaults, or although it was switched off.
    """
    if not any(_similar(name, [migration]) for name in {*settings.migrations, *switches().values()} - {migration}):
        return  # whatever other migrations there are, which need not be imported
    for each in unknown(settings):
        if each.meant == migration:
            where = "" if each.where == "environment" else f"{each.where}: "
            raise UnknownMigration(f"{where}{each.problem}", remedy=each.remedy)


def invalid(settings: Settings) -> Iterator[tuple[Location, str]]:
    """Yield the key of each mistake in the sections of migrations, and a sentence about it; no server is needed.

    The own keys of a migration whose file is broken are not checked; a declaration that is broken is a mistake.
    """
    for each in unknown(settings):
        yield each.location, f"{each.problem}; {each.remedy}"
    for name, database in sorted(settings.databases.items()):
        yield from _of_health(("databases", name, "snapshot", "health"), database.snapshot.health)
    broken = catalog.broken(settings)
    for name, section in sorted(settings.migrations.items()):
        place: Location = ("migrations", name)
        if section.database is not None and section.database not in settings.databases:
            close = close_to(section.database, settings.databases)
            yield (*place, "database"), f"migrations.{name}.database: no database is called {section.database}{close}"
        if name in broken and is_declared(settings, name):
            yield (*place, "declare"), f"{broken[name].problem}; {broken[name].remedy}"
        if name in broken or (kind := catalog.migrations(settings).get(name)) is None:
            continue
        try:
            kind.configure(settings.migration(name))
        except InvalidOptions as error:
            yield from error.found
        except UsageError as error:
            yield place, str(error)
        yield from _of_health((*place, "health"), section.health)


def _of_health(place: Location, health: Mapping[str, Limit]) -> Iterator[tuple[Location, str]]:
    for indicator, limit in health.items():
        try:
            limits({indicator: limit}, ".".join(map(str, place)))
        except UsageError as error:
            yield (*place, indicator), str(error)


def is_declared(settings: Settings, name: str) -> bool:
    """Whether a migration is declared in the settings; it then has no file that could define others."""
    return name in settings.migrations and settings.migrations[name].declare is not None


def _similar(name: str, known: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def _may_define(entry: Broken, name: str) -> bool:
    """Whether the file of a broken migration may define the migration `name`: unless it can be read and lacks it."""
    file = Path(entry.place.rpartition(":")[0])
    if file.suffix != ".py":
        return True
    try:
        return name in file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return True
