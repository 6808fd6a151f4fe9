"""The guard command: rejects an application's writes to a gitlab schema that another database owns."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated

import typer

from infra.cli.options import Config, Json, Reason, Yes
from schemas.errors import UsageError, printable


def guard(
    gitlab_schemas: Annotated[
        list[str] | None,
        typer.Argument(metavar="SCHEMA...", help="The schemas whose tables to guard, such as gitlab_ci."),
    ] = None,
    database: Annotated[str, typer.Option("--database", help="A [databases.NAME] from the settings.")] = "",
    config: Config = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the triggers instead.")] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for an administrator instead.")] = False,
    seconds: Annotated[
        float, typer.Option("--timeout", help="Seconds to keep retrying tables that are in use.", min=0)
    ] = 60.0,
    reason: Reason = None,
    json: Json = False,
    yes: Yes = False,
) -> None:
    """Reject writes to tables that another database owns.

        headrace guard gitlab_ci --database main

    Installs a trigger on every table of the gitlab schemas that the settings or headrace's dictionary know, including
    partitions. A table in use is retried, with a lock timeout of 200 ms. A standby gets the triggers from its primary,
    so install them before a switchover, or with `headrace switchover --guard`. Run it again after adding tables;
    `headrace check` names tables without the trigger.
    """
    from infra.guard import write_guard as trigger
    from infra.postgres import connect
    from infra.postgres.control import require_name
    from infra.service import log
    from infra.service.signals import stop_on_signals
    from infra.settings.file import load_settings
    from infra.state.history import operator
    from producers.commands import guarding

    actor = operator(reason)
    settings = load_settings(config)
    if not database:
        raise UsageError("no database was given", remedy="name it with --database")
    schemas = tuple(dict.fromkeys(gitlab_schemas or ()))
    if not schemas and not remove:
        raise UsageError("no gitlab schema was given", remedy="name them, such as gitlab_ci")
    log.configure(settings.log)
    with stop_on_signals() as stop, connect.session(settings.database(database), name="guard") as connection:
        require_name(connection, database)
        if sql:
            typer.echo(guarding.script(connection, settings, database, schemas, remove=remove))
            return
        guarding.require_primary(connection, database)
        if not yes:
            what = "Remove the trigger" if remove else "Install the trigger"
            typer.confirm(f"{what} in database {database}?", abort=True, err=True)
        if remove:
            report = {"removed": trigger.remove(connection, schemas or None, seconds=seconds, stop=stop, actor=actor)}
        else:
            report = guarding.install(connection, settings, database, schemas, seconds=seconds, stop=stop, actor=actor)
    _show(report, database, json=json)


def _show(report: dict[str, list[str]], database: str, *, json: bool) -> None:
    if json:
        typer.echo(jsonlib.dumps({"database": database, **report}))
        return
    for what, tables in report.items():
        for table in tables:
            typer.echo(f"{what}  {printable(table)}")
    if not any(report.values()):
        typer.echo(f"no table of database {database} has the guard")
