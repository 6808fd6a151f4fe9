"""Reads the settings file, and reports every mistake in one line with the file, the key and the remedy."""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from pathlib import Path

from pydantic import ValidationError

from infra.settings.environment import overridden
from infra.settings.gitlab_dictionary import require_known
from infra.settings.mistakes import Location, Mistakes
from infra.settings.model import PATTERN_WORDS, Settings
from schemas import formats
from schemas.errors import Malformed, SettingsError

DEFAULT_FILE = Path("headrace.toml")


def settings_path(path: Path | None) -> Path:
    """Return `path`, else $HEADRACE_CONFIG, else headrace.toml in this directory."""
    return path or Path(os.environ.get("HEADRACE_CONFIG") or DEFAULT_FILE)


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings from `path`, else from $HEADRACE_CONFIG, else from headrace.toml in this directory.

    Raises SettingsError, and NewerFormat for a file written for a newer headrace.
    """
    chosen = settings_path(path)
    try:
        values = tomllib.loads(chosen.read_text(encoding="utf-8"))
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
        values = formats.SETTINGS.read(values, f"settings file {chosen}")
    except Malformed as error:
        raise SettingsError(
            f"settings file {chosen}: format must be a whole number, 1 or more",
            remedy=f"set it to {formats.SETTINGS.version}, or remove it, which means 1",
        ) from error
    mistakes = Mistakes(Settings, PATTERN_WORDS)
    try:
        settings = _beside(Settings.model_validate(overridden(values, Settings, os.environ)), chosen.absolute().parent)
    except ValidationError as error:
        location, said = mistakes.first(error)
        variable = _variable(location)
        place = f"environment variable {variable}" if variable else f"settings file {chosen}"
        raise SettingsError(f"{place}: {said}") from None
    settings._file = chosen.absolute()
    return settings


def place_of_section(settings: Settings, *names: str) -> str:
    """Return `file:line` of a section's heading, or of the nearest one around it; the file alone if it has neither."""
    path = settings._file
    if path is None:
        return "the settings"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = path.read_text(encoding="utf-8").splitlines()
        for end in range(len(names), 1, -1):
            heading = r"\s*\.\s*".join(rf"[\"']?{re.escape(name)}[\"']?" for name in names[:end])
            for number, line in enumerate(lines, 1):
                if re.match(rf"\s*\[\s*{heading}\s*\]", line):
                    return f"{path}:{number}"
    return str(path)


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


def _variable(location: Location) -> str | None:
    """Return the environment variable that a value comes from, None if it comes from the file."""
    wanted = "__".join(["HEADRACE_" + str(location[0]), *map(str, location[1:])]).lower() if location else ""
    for variable in os.environ:
        # A whole list or table is one variable; the items of a list are not variables.
        if wanted == variable.lower() or wanted.startswith(f"{variable.lower()}__"):
            return variable
    return None
