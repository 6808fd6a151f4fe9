"""The command that has a table read again."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated

import typer

from infra.cli.options import Config, Json, Yes
from infra.settings.file import load_settings
from infra.state.snapshot_requests import SnapshotRequest
from producers.session.resnapshot_request import ask, source_of
from schemas.errors import UsageError

_KEY_HELP = "Once for each column of the key."


def snapshot(
    table: Annotated[str, typer.Argument(help="Such as public.projects.", metavar="TABLE")],
    config: Config = None,
    first: Annotated[
        list[str] | None, typer.Option("--from", metavar="KEY", help=f"The first key to read. {_KEY_HELP}")
    ] = None,
    last: Annotated[
        list[str] | None, typer.Option("--to", metavar="KEY", help=f"The last key to read. {_KEY_HELP}")
    ] = None,
    anew: Annotated[
        bool,
        typer.Option("--anew", help="First empty its topic by a truncate. Mends every gap, and a stopped table. Asks."),
    ] = False,
    source: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help="Where more than one database captures the table.")
    ] = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Have a table, or a range of its keys, read again while its changes go on being published.

    The producer does it, now if it runs, else when it starts; `headrace status` shows how far it is. It publishes the
    rows that are there. A row that is in the topic alone stays there: only --anew removes it.
    """
    settings = load_settings(config)
    if anew and (first or last):
        raise UsageError("--anew reads the whole table", remedy="leave out --from and --to")
    name = source or source_of(settings, table)
    if anew and not yes:
        typer.confirm(f"Empty the topic of {table} before it is read? Its readers see a truncate", abort=True, err=True)
    request = SnapshotRequest(
        table=table, first=tuple(first) if first else None, last=tuple(last) if last else None, anew=anew
    )
    answer = ask(settings, name, request)
    typer.echo(jsonlib.dumps({"source": name, "table": table, "anew": anew, "answer": answer}) if json else answer)
