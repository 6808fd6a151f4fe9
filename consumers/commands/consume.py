"""The commands that run a migration: consume, status, pause, resume, pace, replay, verify, finalize.

Plain functions for headrace.py to mount; they raise HeadraceError, which headrace.py prints.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Final

import typer

from infra.cli.options import Config, Json, Reason
from schemas.errors import UsageError

MigrationArgument = Annotated[
    str, typer.Argument(metavar="MIGRATION", help="The migration's name.", show_default=False)
]
_WATCH_SECONDS: Final = 2.0


def consume(
    migration: MigrationArgument,
    dry: Annotated[bool, typer.Option("--dry-run", help="Count the changes; write nothing, join no group.")] = False,
    until_caught_up: Annotated[
        bool,
        typer.Option("--until-caught-up", help="Exit once the group has applied what is in the topics now."),
    ] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Run a consumer of a migration until it is stopped.

        headrace consume skip_resets

    Start up to one per partition, on any machines: they share the work. Stop or kill one at any moment: the others
    take over, and it resumes where it was. Progress is committed in the same transaction as the effects, so each effect
    happens once. If the migration is complete, the command exits at once. `HEADRACE_<MIGRATION>_ENABLED=false` disables
    the migration.
    """
    from consumers.commands.execution.running import run

    run(migration, config, dry=dry, until_caught_up=until_caught_up, as_json=as_json)


def status(
    seconds: Annotated[
        float | None,
        typer.Argument(metavar="[SECONDS]", help="With --watch: how often, by default every 2.", min=0.1),
    ] = None,
    watched: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Show the progress of every migration and source.

        headrace status --watch 5

    Lists each migration's state, rate, time left and consumers, and each source's WAL position, lag and snapshot.
    --watch redraws it in place on a terminal; in a pipe one follows the other, with --json one document a line.
    """
    if seconds is not None and not watched:
        raise UsageError("SECONDS needs --watch", remedy=f"run `headrace status --watch {seconds:g}`")
    from consumers.operations.status import gather
    from infra.service import log
    from infra.settings.file import load_settings

    settings = load_settings(config)
    log.configure(settings.log)
    if watched:
        from consumers.commands.status_watch import watch
        from infra.service.signals import stop_on_signals

        with stop_on_signals(overdue=lambda: None, exit_code=0) as stop:
            watch(lambda: gather(settings), seconds or _WATCH_SECONDS, stop, sys.stdout, as_json=as_json)
        return
    found = gather(settings)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        from consumers.commands import display

        display.show_status(found)


def pause(migration: MigrationArgument, reason: Reason = None, as_json: Json = False, config: Config = None) -> None:
    """Pause a migration; its consumers stay and wait.

        headrace pause skip_resets

    When the command returns, no transaction of the migration is in progress.
    """
    from consumers.commands.execution.named_migration import named_migration
    from consumers.operations import pauses
    from infra.state.history import operator

    actor = operator(reason)
    settings, kind, database = named_migration(migration, config)
    pauses.set_paused(settings, kind, database, True, actor=actor)
    if as_json:
        print(json.dumps({"migration": migration, "database": database, "paused": True}))
    else:
        print(f"{migration} is paused; resume it with: headrace resume {migration}")


def resume(migration: MigrationArgument, reason: Reason = None, as_json: Json = False, config: Config = None) -> None:
    """Resume a paused or failed migration.

        headrace resume skip_resets

    Its consumers notice within a second.
    """
    from consumers.commands.execution.named_migration import named_migration
    from consumers.operations import pauses
    from infra.state.history import operator

    actor = operator(reason)
    settings, kind, database = named_migration(migration, config)
    pauses.set_paused(settings, kind, database, False, actor=actor)
    if as_json:
        print(json.dumps({"migration": migration, "database": database, "paused": False}))
    else:
        print(f"{migration} is resumed")


def pace(
    migration: MigrationArgument,
    max_rate: Annotated[
        float | None,
        typer.Option(
            "--max-rate", metavar="ROWS", help="Most rows that each consumer changes in a second; 0: no limit."
        ),
    ] = None,
    transaction_ms: Annotated[
        int | None, typer.Option("--transaction-ms", metavar="MS", help="Target duration of a transaction.")
    ] = None,
    as_in_settings: Annotated[bool, typer.Option("--as-in-settings", help="Return to the settings' pace.")] = False,
    reason: Reason = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Change the pace of a migration while it runs.

        headrace pace skip_resets --max-rate 500

    Running consumers follow within a second, and others when they start, until --as-in-settings. What is not given
    stays as it is. `headrace status --json` shows the pace.
    """
    given = max_rate is not None or transaction_ms is not None
    if given is as_in_settings:
        raise UsageError(
            "--as-in-settings excludes --max-rate and --transaction-ms" if given else "no pace was given",
            remedy="give --max-rate, --transaction-ms or both, or --as-in-settings",
        )
    from consumers.commands.execution.named_migration import named_migration
    from consumers.operations.pace_changes import set_pace
    from infra.state.history import operator

    actor = operator(reason)
    settings, kind, database = named_migration(migration, config)
    rate, duration = set_pace(settings, kind, database, max_rate, transaction_ms, keep=not as_in_settings, actor=actor)
    if as_json:
        print(json.dumps({"migration": migration, "database": database, "max_rate": rate, "transaction_ms": duration}))
    else:
        shown = {"max_rate": rate, "transaction_ms": duration}
        texts = [
            f"{name} {'as in the settings' if value is None else f'{value:,.12g}'}" for name, value in shown.items()
        ]
        print(f"{migration}: {', '.join(texts)}; its consumers follow within a second")


def replay(
    migration: MigrationArgument,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="START",
            help="beginning, timestamp:2026-01-31T12:00:00Z (everything committed since) or lsn:16/B374D848.",
        ),
    ] = "beginning",
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="COLUMN=VALUE[,VALUE...]",
            help="Only events whose key has this value; double-quote a value with a comma. Repeatable.",
        ),
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option("--keys", metavar="VALUE[,VALUE...]", help="Like --where, for a key of one column."),
    ] = None,
    reason: Reason = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Start a new run of a migration over its topics.

        headrace replay skip_resets --from timestamp:2026-01-31T12:00:00Z

    Start a consumer to apply it. The source database is not needed. Rows that are already up to date stay untouched.
    Refused, with exit code 3, while consumers are alive.
    """
    from consumers.commands.execution.named_migration import named_migration
    from consumers.operations.replay import replay as begin_replay
    from consumers.operations.start_offsets import parse_start
    from consumers.planning.key_selection import parse_selection
    from infra.state.history import operator

    actor = operator(reason)
    settings, kind, database = named_migration(migration, config)
    selection = parse_selection(where or [], keys or [])
    begun = begin_replay(settings, kind, database, start=parse_start(start), selection=selection, actor=actor)
    if as_json:
        starts = [
            {"topic": place.topic, "partition": place.partition, "offset": at} for place, at in begun.starts.items()
        ]
        counts = {"run": begun.run, "partitions": len(begun.starts)}
        print(json.dumps({"migration": migration, **counts, "starts": starts, "selection": begun.selection}))
    else:
        print(f"{migration} is at run {begun.run}; apply it with: headrace consume {migration}")


def verify(
    what: Annotated[
        str,
        typer.Argument(metavar="MIGRATION|TABLE", help="A migration; with --rows also a table.", show_default=False),
    ],
    rows: Annotated[
        bool, typer.Option("--rows", help="Compare the source's table with its topic, row by row.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="With --rows: have the producer re-snapshot the rows that differ.")
    ] = False,
    database: Annotated[
        str | None, typer.Option("--database", help="With --rows: the source, if several capture the table.")
    ] = None,
    reason: Reason = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Count the rows that a migration has left to change.

        headrace verify skip_resets

    Exits with 1 if any are left, or if the migration gave something up. With --rows it compares every row of the
    source's table, or of each table of the migration, with the last event of its topic, and prints the keys that
    differ; it exits with 1 if there are any. Table and topic may be in use; the producer must be running. Its log says
    how long that takes; killed and run again, it continues where it was.
    """
    if repair and not rows:
        raise UsageError(
            "--repair needs --rows", remedy="without --rows there is nothing to repair: start the migration's consumer"
        )
    from infra.state.history import operator

    actor = operator(reason)
    if rows:
        from consumers.commands.execution.row_verification import verify_rows

        verify_rows(config, what, database, actor, repair=repair, as_json=as_json)
        return
    from consumers.commands.execution.verification import verify_migration

    verify_migration(config, what, actor, as_json=as_json)


def finalize(migration: MigrationArgument, as_json: Json = False, config: Config = None) -> None:
    """Run a consumer until the migration is complete.

        headrace finalize skip_resets

    It works along with running consumers, and waits until the producer's snapshots are done. Exits with 1 if rows are
    left that no event brings or the migration has failed, with 3 while it is paused.
    """
    from consumers.commands.execution.running import run_until_complete

    run_until_complete(migration, config, as_json=as_json)
