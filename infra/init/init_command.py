"""The command `init`."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from infra.cli.options import Config
from infra.init.administrator import administrator_script
from infra.rights import acls as kafka_acls
from infra.rights import programs
from infra.rights.programs import Programs
from infra.settings.file import load_settings, settings_path
from schemas.errors import Refused, UsageError


def commands(all_programs: Programs) -> tuple[Callable[..., None], ...]:
    """Return the commands; `all_programs` says what these settings run, and what each of it needs."""

    def init(
        names: Annotated[
            list[str] | None,
            typer.Argument(metavar="[NAME]...", help="With --sql or --acls: these sources and migrations only."),
        ] = None,
        config: Config = None,
        sql: Annotated[
            bool, typer.Option("--sql", help="Print what an administrator runs for these settings instead.")
        ] = False,
        acls: Annotated[bool, typer.Option("--acls", help="Print the Kafka ACLs alone, for Terraform.")] = False,
        apply: Annotated[
            bool, typer.Option("--apply", help="With --acls: make them, with an administrator's credentials.")
        ] = False,
    ) -> None:
        """Write a commented settings file, or print the SQL and the Kafka ACLs that it needs.

        The SQL makes the role, the schema `headrace`, the publication and the least privileges that work; a role that
        may create these by itself needs none of it. With names it is for what these sources and migrations need, so
        that producers and consumers have a role each: `headrace init --sql main`, `headrace init --sql skip_resets`.

        --acls prints acls.tf.json for Terraform's provider Mongey/kafka; with --apply the client of these settings
        makes them, which then has to be an administrator's, such as by HEADRACE_KAFKA__OPTIONS__SASL_USERNAME.
        """
        if not sql and not acls:
            if names or apply:
                raise UsageError("a settings file is written for everything", remedy="give --sql or --acls too")
            _write(settings_path(config))
            return
        settings = load_settings(config)
        wanted = programs.chosen(list(all_programs(settings)), names or [])
        if sql:
            typer.echo(administrator_script(settings, wanted))
        elif apply:
            made = kafka_acls.apply(settings.kafka, programs.acls(wanted))
            typer.echo(f"{made} ACLs are there")
        else:
            typer.echo(kafka_acls.terraform(programs.acls(wanted)))

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
