"""The command `init`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.options import Config
from infra.settings.providers import PROVIDERS
from schemas.errors import Refused, UsageError

if TYPE_CHECKING:
    from infra.rights.programs import Programs


def init_with(all_programs: Programs) -> Callable[..., None]:
    """Return the command; `all_programs` lists the services of the settings and their rights."""

    def init(
        names: Annotated[
            list[str] | None,
            typer.Argument(metavar="[SOURCE|MIGRATION]...", help="Only what these need, with --sql or --acls."),
        ] = None,
        config: Config = None,
        sql: Annotated[
            bool, typer.Option("--sql", help="Print the SQL and ACL commands for an administrator.")
        ] = False,
        provider: Annotated[
            str | None,
            typer.Option(help=f"With --sql: who operates the servers ({', '.join(PROVIDERS)}).", show_default=False),
        ] = None,
        acls: Annotated[bool, typer.Option("--acls", help="Print only the Kafka ACLs, for Terraform.")] = False,
        apply: Annotated[
            bool, typer.Option("--apply", help="Create the ACLs, with an administrator's credentials.")
        ] = False,
    ) -> None:
        """Write a settings file, or print its SQL or Kafka ACLs.

            headrace init

        On a terminal it asks for the addresses, tests them, and proposes gitlab schemas; else it writes an example.

        --sql prints SQL that creates the role, the schema `headrace`, the publication and the least privileges; a
        role that may create these itself does not need it. Name sources or migrations to give producers and
        consumers separate roles: `headrace init --sql main`, `headrace init --sql skip_resets`. A managed server has no
        superuser: `headrace init --sql --provider rds` grants what its administrator can.

        --acls prints acls.tf.json for the Terraform provider Mongey/kafka. With --apply, headrace creates the ACLs;
        its credentials must be an administrator's, such as from HEADRACE_KAFKA__OPTIONS__SASL_USERNAME.
        """
        from infra.settings.file import load_settings, settings_path

        if not sql and not acls:
            if names or apply or provider:
                raise UsageError("names, --apply and --provider need --sql or --acls", remedy="add one of them")
            _begin(settings_path(config))
            return
        from infra.init.administrator import administrator_script
        from infra.rights import acls as kafka_acls
        from infra.rights import programs

        if provider is not None and provider not in PROVIDERS:
            raise UsageError(f"no provider is called {provider!r}", remedy=f"use one of: {', '.join(PROVIDERS)}")
        settings = load_settings(config)
        wanted = programs.chosen(list(all_programs(settings)), names or [])
        if sql:
            typer.echo(administrator_script(settings, wanted, provider))
        elif apply:
            made = kafka_acls.apply(settings.kafka, programs.acls(wanted))
            typer.echo(f"{made} ACLs are in place")
        else:
            typer.echo(kafka_acls.terraform(programs.acls(wanted)))

    return init


def _begin(path: Path) -> None:
    text = files("infra.init").joinpath("settings_file.toml").read_text(encoding="utf-8")
    if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
        from infra.init.interview import RealServers, interview

        if path.exists():
            typer.confirm(f"{path} exists; replace it?", abort=True, err=True)
        text = interview(text, _prompt, typer.echo, RealServers())
        path.unlink(missing_ok=True)
    _write(path, text)


def _prompt(question: str, default: str) -> str:
    return str(typer.prompt(question, default=default))


def _write(path: Path, text: str) -> None:
    try:
        # Readable only by its owner, since a dsn may contain a password.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Refused(f"{path} exists already", remedy="choose another with --config, or edit that one") from None
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {path}; edit it, then run `headrace check`")
