"""The command `init`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from infra.init.administrator import administrator_script
from infra.options import Config
from infra.settings import DEFAULT_FILE, load_settings
from schemas.errors import Refused


def init(
    config: Config = None,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print what an administrator runs for these settings instead.")
    ] = False,
) -> None:
    """Write a commented settings file, or print the SQL and the Kafka ACLs that it needs.

    The SQL makes the role, the schema `headrace`, the publication and the least privileges that work; a role that may
    create these by itself needs none of it.
    """
    if sql:
        typer.echo(administrator_script(load_settings(config)))
        return
    path = config or Path(DEFAULT_FILE)
    example = files("infra.init").joinpath("settings_file.toml").read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(example)
    except FileExistsError:
        raise Refused(f"{path} exists already", remedy="name another with --config, or edit that one") from None
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {path}; edit it, then run `headrace check`")


COMMANDS: tuple[Callable[..., None], ...] = (init,)
