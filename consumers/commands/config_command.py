"""The commands of the settings file: `headrace config check`, `show` and `schema`. None needs a server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from infra.cli.options import Config, Json
from schemas.errors import SettingsError, printable

if TYPE_CHECKING:
    from pydantic import BaseModel

    from infra.settings.description.effective import Setting
    from infra.settings.model import Settings

app = typer.Typer(
    help="""Check, show or describe the settings file.

        headrace config check

    No server is needed; `headrace check` asks the servers.
    """,
    no_args_is_help=True,
)


@app.command()
def check(as_json: Json = False, config: Config = None) -> None:
    """Validate the settings file and the environment.

        headrace config check

    Reports every mistake with its line or its variable, and a similar known name; exit code 2 if there is one. The keys
    of a migration whose own file is broken cannot be checked, and are no mistake.
    """
    document = check_document(config)
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        for each in document["mistakes"]:
            print(printable(f"{each['place']}: {each['problem']}"))
        for each in document["unchecked"]:
            print(printable(f"not checked: {each['name']}: {each['place']}: {each['problem']}; {each['remedy']}"))
        if not document["mistakes"]:
            print(printable(f"{document['file']} is valid"))
    if document["mistakes"]:
        raise typer.Exit(SettingsError.exit_code)


@app.command()
def show(as_json: Json = False, config: Config = None) -> None:
    """Print the effective settings, with the origin of each.

        headrace config show

    Prints TOML with a comment after each value: the file's line, the environment variable, or `default`. Secrets are
    masked.
    """
    from infra.settings.description.effective import as_toml, effective
    from infra.settings.file import load_settings, settings_path

    settings = load_settings(config)
    options = _options(settings)
    found = effective(config, settings, options)
    if as_json:
        print(json.dumps({"file": str(settings_path(config)), "settings": list(map(_described, found))}, indent=2))
    else:
        print(as_toml(found))


@app.command()
def schema(config: Config = None) -> None:
    """Print the JSON schema of the settings file.

        headrace config schema > headrace.schema.json

    With `#:schema ./headrace.schema.json` as the first line of headrace.toml, editors that use taplo complete its keys
    and describe them. It has the options of the migrations that this settings file finds.
    """
    from consumers.operations import catalog
    from infra.settings.description.settings_schema import json_schema
    from infra.settings.file import load_settings
    from infra.settings.model import Settings

    try:
        settings = load_settings(config)
    except SettingsError:
        settings = Settings.model_construct()  # the schema helps to write the file
    print(json.dumps(json_schema(_options(settings), complete=not catalog.broken(settings)), indent=2))


def check_document(config: Path | None) -> dict[str, Any]:
    """Return what `config check --json` prints. Raises NewerFormat."""
    from consumers.operations import catalog, migration_sections
    from infra.settings.file import InvalidSettings, load_settings, located, read_document, settings_path

    file = settings_path(config)
    document: dict[str, Any] = {"file": str(file), "mistakes": [], "unchecked": []}
    try:
        settings = load_settings(config)
        text, _ = read_document(file)
    except InvalidSettings as error:
        found = error.found
    except SettingsError as error:
        where = f"settings file {file}"
        problem = str(error).removeprefix(f"{where}: ").removeprefix(f"{where} ")
        return {**document, "mistakes": [{"place": where, "line": None, "problem": problem}]}
    else:
        found = tuple(located(file, text, key, said) for key, said in migration_sections.invalid(settings))
        document["unchecked"] = [
            {"name": name, "place": entry.place, "problem": entry.problem, "remedy": entry.remedy}
            for name, entry in sorted(catalog.broken(settings).items())
            if not migration_sections.is_declared(settings, name)
        ]
    document["mistakes"] = [{"place": each.place, "line": each.line, "problem": each.problem} for each in found]
    return document


def _options(settings: Settings) -> Mapping[str, type[BaseModel]]:
    from consumers.operations import catalog

    return {name: kind.options_type for name, kind in catalog.migrations(settings).items()}


def _described(setting: Setting) -> dict[str, Any]:
    from infra.settings.mistakes import dotted

    return {
        "key": dotted(setting.key),
        "value": setting.value,
        "origin": setting.origin,
        "line": setting.line,
        "variable": setting.variable,
    }
