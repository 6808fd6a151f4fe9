"""Reads the settings file, and reports every mistake in one line with the file, the key and the remedy."""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infra.settings.description.lines import line_of, lines_of
from infra.settings.description.variables import variable_of
from infra.settings.environment import overridden
from infra.settings.gitlab_dictionary import require_known
from infra.settings.mistakes import Location, Mistakes
from infra.settings.model import PATTERN_WORDS, Settings
from schemas import formats
from schemas.errors import Malformed, SettingsError
from schemas.lazy_dataclass import dataclass

DEFAULT_FILE = Path("headrace.toml")


def settings_path(path: Path | None) -> Path:
    """Return `path`, else $HEADRACE_CONFIG, else headrace.toml in this directory."""
    return path or Path(os.environ.get("HEADRACE_CONFIG") or DEFAULT_FILE)


@dataclass(frozen=True)
class InvalidSetting:
    """A mistake in the settings: its file and line, or its environment variable, and a sentence about its key."""

    where: str
    line: int | None
    problem: str

    @property
    def place(self) -> str:
        """The place in messages."""
        return self.where if self.line is None else f"{self.where}:{self.line}"


class InvalidSettings(SettingsError):
    """Correct the settings file; `headrace init` writes a commented example."""

    def __init__(self, found: Sequence[InvalidSetting]) -> None:
        self.found = tuple(found)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        super().__init__(f"{found[0].place}: {found[0].problem}{more}")


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings from `path`, else from $HEADRACE_CONFIG, else from headrace.toml in this directory.

    Raises SettingsError, which is InvalidSettings about keys and values, and NewerFormat for a file written for a newer
    headrace.
    """
    chosen = settings_path(path)
    text, values = read_document(chosen)
    mistakes = Mistakes(Settings, PATTERN_WORDS)
    try:
        settings = _beside(Settings.model_validate(overridden(values, Settings, os.environ)), chosen.absolute().parent)
    except ValidationError as error:
        found = [located(chosen, text, location, said) for location, said in mistakes.each(error)]
        raise InvalidSettings(sorted(found, key=lambda each: (each.line is None, each.line))) from None
    settings._file = chosen.absolute()
    return settings


def read_document(chosen: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a settings file and its values, in the current format. Raises as `load_settings`."""
    try:
        text = chosen.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError:
        raise SettingsError(
            f"settings file {chosen} does not exist",
            remedy="write one with `headrace init`, or name one with --config or HEADRACE_CONFIG",
        ) from None
    except OSError as error:
        raise SettingsError(
            f"settings file {chosen} cannot be read: {error.strerror}", remedy="name another with --config"
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"settings file {chosen} is not TOML: byte {error.start} is not UTF-8", remedy="save it as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"settings file {chosen} is not TOML: {error}", remedy="correct that line") from error
    try:
        return text, formats.SETTINGS.read(values, f"settings file {chosen}")
    except Malformed as error:
        raise SettingsError(
            f"settings file {chosen}: format must be a whole number, 1 or more",
            remedy=f"set it to {formats.SETTINGS.version}, or remove it, which means 1",
        ) from error


def located(file: Path, text: str, location: Location, problem: str) -> InvalidSetting:
    """Return a mistake with its place: the environment variable that sets the key, else its line in the file."""
    if (variable := variable_of(location)) is not None:
        return InvalidSetting(f"environment variable {variable}", None, problem)
    return InvalidSetting(f"settings file {file}", line_of(lines_of(text), location), problem)


def place_of_section(settings: Settings, *names: str) -> str:
    """Return the variable that sets a section, else `file:line` of it or of the nearest table around it, else the file.

    Settings that no file has are "the settings".
    """
    if settings._file is None:
        return "the settings"
    if (variable := variable_of(names)) is not None:
        return f"environment variable {variable}"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if (line := line_of(lines_of(settings._file.read_text(encoding="utf-8")), names)) is not None:
            return f"{settings._file}:{line}"
    return str(settings._file)


def _beside(settings: Settings, directory: Path) -> Settings:
    """Return the settings with relative paths resolved against `directory`, not the working directory."""
    databases = {}
    for name, section in settings.databases.items():
        paths = {"spill_directory": section.spill_directory, "gitlab_dictionary": section.gitlab_dictionary}
        update = {key: directory / path for key, path in paths.items() if path is not None}
        databases[name] = section.model_copy(update=update)
        require_known(name, databases[name])
    storages = {name: section.beside(directory) for name, section in settings.virtual_storages.items()}
    return settings.model_copy(
        update={
            "plugin_paths": tuple(directory / folder for folder in settings.plugin_paths),
            "databases": databases,
            "virtual_storages": storages,
            "registry": settings.registry.beside(directory),
            "gitserver": settings.gitserver.beside(directory),
        }
    )
