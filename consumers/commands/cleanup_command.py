"""The command `headrace cleanup`."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.options import Config, Json, Reason, Yes
from infra.service import log

if TYPE_CHECKING:
    from consumers.operations.cleanup import StaleRecord


def cleanup(
    database: Annotated[
        str | None, typer.Argument(metavar="[DATABASE]", help="A [databases.NAME] of the settings. [default: all]")
    ] = None,
    config: Config = None,
    reason: Reason = None,
    json: Json = False,
    yes: Yes = False,
) -> None:
    """List or remove records that a switchover left behind.

        headrace cleanup main

    These are records of migrations whose gitlab schema the database no longer owns. Without --yes they are only listed.
    Records are kept if the database owns the gitlab schema, or if no other database confirms that it does.
    """
    from consumers.operations.cleanup import remove, stale_records
    from infra.settings.file import load_settings
    from infra.state.history import operator

    actor = operator(reason)
    settings = load_settings(config)
    log.configure(settings.log)
    databases = [database] if database is not None else list(settings.databases)
    removed = [record for each in databases for record in remove(settings, each, actor)] if yes else []
    left = [record for each in databases for record in stale_records(settings, each)]
    if json:
        typer.echo(jsonlib.dumps({"removed": [asdict(each) for each in removed], "stale": [asdict(e) for e in left]}))
        return
    for record in removed:
        typer.echo(f"removed  {_line(record)}")
    for record in left:
        typer.echo(f"stale    {_line(record)}" + (f"; kept: {record.kept}" if record.kept else ""))
    for each in databases:
        if not any(record.database == each for record in (*removed, *left)):
            typer.echo(f"{each} has no stale records")
    if any(record.kept is None for record in left):
        typer.echo(f"remove them with: headrace cleanup{f' {database}' if database else ''} --yes")


def _line(record: StaleRecord) -> str:
    return (
        f"{record.database}: {record.migration} ({record.gitlab_schema}, owned by {record.owner}): run {record.run},"
        f" {record.applied} applied"
    )
