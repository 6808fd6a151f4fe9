"""The command `init`."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from infra.init.administrator import OwnTables, administrator_script
from infra.options import Config
from infra.settings import load_settings, settings_path
from schemas.errors import Refused


def commands(own_tables: Callable[[], OwnTables]) -> tuple[Callable[..., None], ...]:
    """Return the commands; `own_tables` says which tables the migrations make for themselves."""

    def init(
        config: Config = None,
        sql: Annotated[
            bool, typer.Option("--sql", help="Print what an administrator runs for these settings instead.")
        ] = False,
    ) -> None:
        """Write a commented settings file, or print the SQL and the Kafka ACLs that it needs.

        The SQL makes the role, the schema `headrace`, the publication and the least privileges that work; a role that
        may create these by itself needs none of it.
        """
        if sql:
            typer.echo(administrator_script(load_settings(config), own_tables()))
        else:
            _write(settings_path(config))

    return (init,)


def _write(path: Path) -> None:
    example = files("infra.init").joinpath("settings_file.toml").read_text(encoding="utf-8")
    try:
        # For its owner only, since a dsn may have a password.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(example)
    except FileExistsError:
        raise Refused(f"{path} exists already", remedy="name another with --config, or edit that one") from None
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {path}; edit it, then run `headrace check`")
