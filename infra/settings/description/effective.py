"""Lists the effective settings, each with its origin: a line of the file, an environment variable, or the default.

Secrets are masked, and so is every value whose meaning is unknown: an option of a migration that was not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel, ValidationError

from infra.settings.description.lines import line_of, lines_of
from infra.settings.description.toml_text import toml_key, toml_value
from infra.settings.description.variables import variable_of
from infra.settings.file import read_document, settings_path
from infra.settings.mistakes import Location
from infra.settings.model import MigrationSettings, Settings, switches
from infra.settings.registry_settings import HIDDEN
from schemas import formats
from schemas.lazy_dataclass import dataclass

_SHOWN_OF_DSN: Final = ("user", "host", "port", "dbname")


class Origin(StrEnum):
    """The place that a value comes from; the environment wins over the file."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"


@dataclass(frozen=True)
class Setting:
    """One key with its value, in JSON's types; None is a key without a value.

    `line` is set if it comes from the file, `variable` if it comes from the environment.
    """

    key: Location
    value: Any
    origin: Origin
    line: int | None = None
    variable: str | None = None


def effective(path: Path | None, settings: Settings, options: Mapping[str, type[BaseModel]]) -> list[Setting]:
    """Return every key of `settings`, which were loaded from `path`; `options` has each migration's own options."""
    text, values = read_document(settings_path(path))
    lines = lines_of(text)
    document = settings.model_dump(mode="json")
    for name, section in settings.databases.items():
        document["databases"][name]["dsn"] = _masked(section.dsn.get_secret_value())
    off = {name: variable for variable, name in switches().items() if name in options}
    named = settings.migrations.keys() | off.keys()
    document["migrations"] = {name: _of_migration(settings, name, options.get(name)) for name in sorted(named)}
    found = [Setting((formats.VERSION_MARK,), formats.SETTINGS.version, Origin.DEFAULT)]
    if (formats.VERSION_MARK,) in lines:
        found = [Setting((formats.VERSION_MARK,), formats.SETTINGS.version, Origin.FILE, lines[formats.VERSION_MARK,])]
    for key, value in _leaves(document):
        switch = off.get(str(key[1])) if key[0] == "migrations" and key[2:] == ("enabled",) else None
        if (variable := switch or variable_of(key)) is not None:
            found.append(Setting(key, value, Origin.ENVIRONMENT, variable=variable))
        elif _has(values, key):
            found.append(Setting(key, value, Origin.FILE, line_of(lines, key)))
        else:
            found.append(Setting(key, value, Origin.DEFAULT))
    return found


def as_toml(settings: Iterable[Setting]) -> str:
    """Return a TOML document with the origin of each value as a comment; keys without a value are comments."""
    tables: dict[Location, list[Setting]] = {(): []}
    for each in settings:
        tables.setdefault(each.key[:-1], []).append(each)
    parts = []
    for table, keys in tables.items():
        lines = [f"[{'.'.join(map(_key, table))}]"] if table else []
        for each in keys:
            start = f"# {_key(each.key[-1])} is not set" if each.value is None else _assignment(each)
            origin = f"line {each.line}" if each.origin is Origin.FILE else each.variable or each.origin
            lines.append(start if each.value is None else f"{start}  # {origin}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _assignment(setting: Setting) -> str:
    return f"{_key(setting.key[-1])} = {toml_value(setting.value)}"


def _key(part: object) -> str:
    return toml_key(str(part))


def _leaves(document: Mapping[str, Any], above: Location = ()) -> Iterator[tuple[Location, Any]]:
    """Yield each key with its value, those of a table before its tables."""
    for name, value in document.items():
        if not isinstance(value, dict):
            yield (*above, name), value
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*above, name))


def _of_migration(settings: Settings, name: str, options: type[BaseModel] | None) -> dict[str, Any]:
    """Return a migration's section with its own options, whose defaults only its model has."""
    section = settings.migration(name)
    common = section.model_dump(mode="json", include=set(MigrationSettings.model_fields))
    masked = dict.fromkeys(section.options, HIDDEN)
    if options is None:
        return {**common, **masked}
    try:
        own = options.model_validate(dict(section.options), context=settings).model_dump(mode="json")
    except ValidationError:
        own = masked
    return {**common, **own}


def _masked(dsn: str) -> str:
    """Return the parts of a connection string that are no secret."""
    parts = conninfo_to_dict(dsn)
    shown = [f"{name}={parts[name]}" for name in _SHOWN_OF_DSN if parts.get(name) is not None]
    return " ".join([*shown, f"password={HIDDEN}"] if parts.get("password") else shown)


def _has(values: Mapping[str, Any], key: Location) -> bool:
    found: Any = values
    for part in key:
        if not isinstance(found, Mapping) or part not in found:
            return False
        found = found[part]
    return True
