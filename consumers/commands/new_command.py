"""The commands `headrace new`: `migration`, which writes the files of a migration into the author's folder."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from consumers.commands.backfill_command import backfill
from infra.cli.options import Config, Json
from schemas.errors import Refused, UsageError

if TYPE_CHECKING:
    from infra.settings.model import Settings

_TAKEN: Final = "id:bigint"
"""The key if no database has or says it."""

app = typer.Typer(
    help="""Write a migration of your own.

        headrace new migration lower_emails --table public.users

    `migration` writes a file of Python, its case and its test; `backfill` a section of the settings, without code.
    """,
    no_args_is_help=True,
)
app.command()(backfill)


@app.command()
def migration(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as lower_emails.", show_default=False)],
    table: Annotated[str, typer.Option("--table", metavar="SCHEMA.TABLE", help="The table that it changes.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="COLUMN=EXPRESSION", help="What it sets, in SQL. Repeatable."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="COLUMN:TYPE", help="The table's key. [default: asks the database]"),
    ] = None,
    gitlab_schema: Annotated[
        str | None, typer.Option("--gitlab-schema", help="Of the table, if headrace does not know it.")
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--directory", help="Folder. [default: first of plugin_paths, else migrations]", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Write a migration, its case and its test.

        headrace new migration lower_emails --table public.users --set "email=lower(email)"

    The migration sets the columns in every row where they differ; edit it as you like. The case has rows for the
    contract test, which `pytest` runs on servers of its own. No file is overwritten.
    """
    from consumers.declared.declaration import schema_of
    from consumers.operations.authoring import new_migration
    from consumers.operations.authoring.table_key import key_in_database
    from infra.settings.file import settings_path

    new_migration.require_names(name, table, gitlab_schema)
    chosen = settings_path(config)
    settings = _settings(config, chosen)
    folder = directory.absolute() if directory else _usual_folder(settings, chosen)
    label = schema_of(settings, table) if gitlab_schema is None else gitlab_schema
    known = key if key is not None else key_in_database(settings, table, label)
    column, key_type = new_migration.parse_key(_TAKEN if known is None else known)
    assignments = new_migration.assignments(sets or [], column)
    new = new_migration.NewMigration(name, table, label, column, key_type, assignments)
    texts = {folder / file: text for file, text in new_migration.files(new).items()}
    _require_free(settings, name)
    _write_all(texts)
    listed = folder.resolve() in (each.resolve() for each in settings.plugin_paths)
    if as_json:
        written = {"migration": name, "files": list(map(str, texts)), "listed": listed}
        print(json.dumps(written))
        return
    for path in texts:
        print(f"wrote {path}")
    if not listed:
        print(_listing(chosen, folder))
    for line in _assumed(settings, chosen, table, known=known is not None):
        print(line)
    print(f"test it with: pytest {folder}")
    print(f"what it still lacks, such as privileges: headrace check {name}")


def _usual_folder(settings: Settings, chosen: Path) -> Path:
    return next(iter(settings.plugin_paths), chosen.absolute().parent / "migrations")


def _listing(chosen: Path, folder: Path) -> str:
    base = chosen.absolute().parent
    shown = f"./{folder.relative_to(base)}" if folder.is_relative_to(base) else str(folder)
    return f"add to {chosen}, above its first section: plugin_paths = [{json.dumps(shown)}]"


def _assumed(settings: Settings, chosen: Path, table: str, *, known: bool) -> Iterator[str]:
    """Yield what may be wrong with the files; the table's key is `known` if it was given, or a database has it."""
    if settings.databases and not any(each.captures(table) for each in settings.databases.values()):
        yield f"no database of {chosen} captures {table}: correct it, or add it to the `tables` of one"
    if not known:
        yield (
            "no database says its key, which is taken to be id bigint: edit the files if it is not, or"
            " remove them and give --key id:uuid"
        )


def _settings(config: Path | None, chosen: Path) -> Settings:
    from infra.settings.file import load_settings
    from infra.settings.model import Settings

    # Without a file the environment's settings are not read: alone they may be incomplete.
    return load_settings(config) if config is not None or chosen.exists() else Settings.model_construct()


def _require_free(settings: Settings, name: str) -> None:
    """Raise UsageError if the name is another migration's, or a module's that the test would import instead."""
    from consumers.operations import catalog

    if name in catalog.migrations(settings):
        origin = catalog.origins(settings)[name]
        raise UsageError(f"there is a migration {name} already ({origin})", remedy="choose another name")
    if importlib.util.find_spec(name) is not None:
        raise UsageError(f"an installed module is called {name}", remedy="choose another name")


def _write_all(texts: Mapping[Path, str]) -> None:
    """Write files of path → text. Raises Refused, before any is written, if one of them exists."""
    for path in texts:
        if path.exists():
            raise Refused(f"{path} exists already", remedy="choose another name, or edit that file")
    for path, text in texts.items():
        _write(path, text)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        # Never writable by every user, whatever the umask: such a file is refused.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}", remedy="choose another --directory") from error
