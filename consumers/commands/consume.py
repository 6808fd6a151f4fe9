"""The commands that run a migration: consume, status, pause, resume, replay, verify, finalize.

Plain functions for headrace.py to mount; they raise HeadraceError, which headrace.py prints.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from consumers.commands import dead_letters_command, display, new_command, process_tuning, schema_command
from consumers.commands.migrations_command import migrations
from consumers.commands.place_command import place
from consumers.commands.route_command import route
from consumers.commands.try_command import try_
from consumers.compare.comparison import TopicDiffers, compare
from consumers.compare.repair import request_repair
from consumers.contract import contract_checks
from consumers.contract.migration import Migration
from consumers.dead_letters.given_up import WorkGivenUp, count_given_up
from consumers.operations import catalog, pauses
from consumers.operations import rights as consumer_rights
from consumers.operations.cleanup import cleanup
from consumers.operations.dry_run import dry_run
from consumers.operations.remaining import remaining
from consumers.operations.replay import replay as begin_replay
from consumers.operations.start_offsets import parse_start
from consumers.operations.status import gather
from consumers.planning.key_selection import parse_selection
from consumers.runtime.assembly import consumer_of
from consumers.runtime.completion import RowsLeft
from infra.cli.options import Config, Json
from infra.postgres import connect
from infra.rights import kafka_rights
from infra.service import log, metrics
from infra.service.signals import stop_on_signals
from infra.settings.file import load_settings
from infra.settings.model import Settings
from schemas.errors import Interrupted, Refused, UsageError

MigrationArgument = Annotated[
    str, typer.Argument(metavar="MIGRATION", help="The migration's name.", show_default=False)
]


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
    settings = load_settings(config)
    kind = catalog.migration_class(settings, migration)
    work = kind.configure(settings.migration(migration))
    database = catalog.target_database(settings, kind)
    log.configure()
    if not settings.migration(migration).enabled:
        log.get(migration=migration).info("migration disabled")
        return
    if dry:
        _dry(settings, work, database, as_json)
        return
    # A first connection that fails is a mistake in the settings and an error; one that is lost later is retried.
    with connect.session(settings.database(database), name=f"consume {migration}") as connection:
        connect.require_all_rows(connection, (*kind.tables, *kind.writes))
    metrics.serve(settings.metrics)
    stopping = threading.Event()
    with display.progress(migration, settings, kind, database) as report:
        with kafka_rights.named(settings.kafka, lambda: consumer_rights.needed(settings, kind, database)):
            member = consumer_of(
                settings, work, database, stopping=stopping, until_caught_up=until_caught_up, report=report
            )
            process_tuning.tune()
            with stop_on_signals(stopping, overdue=member.cancel, cut=member.cut, exit_code=0):
                totals = member.run()
    if as_json:
        print(json.dumps({"migration": migration, **asdict(totals)}))
    else:
        log.get(migration=migration).info("stopped" if stopping.is_set() else "caught up", **asdict(totals))


def status(as_json: Json = False, config: Config = None) -> None:
    """Show the progress of every migration and source.

        headrace status

    Lists each migration's state, rate, time left and consumers, and each source's WAL position, lag and snapshot.
    """
    settings = load_settings(config)
    log.configure()
    found = gather(settings)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        display.show_status(found)


def pause(migration: MigrationArgument, config: Config = None) -> None:
    """Pause a migration; its consumers stay and wait.

        headrace pause skip_resets

    When the command returns, no transaction of the migration is in progress.
    """
    settings, kind, database = _chosen(migration, config)
    pauses.set_paused(settings, kind, database, True)
    print(f"{migration} is paused; resume it with: headrace resume {migration}")


def resume(migration: MigrationArgument, config: Config = None) -> None:
    """Resume a paused or failed migration.

        headrace resume skip_resets

    Its consumers notice within a second.
    """
    settings, kind, database = _chosen(migration, config)
    pauses.set_paused(settings, kind, database, False)
    print(f"{migration} is resumed")


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
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Start a new run of a migration over its topics.

        headrace replay skip_resets --from timestamp:2026-01-31T12:00:00Z

    Start a consumer to apply it. The source database is not needed. Rows that are already up to date stay untouched.
    Refused, with exit code 3, while consumers are alive.
    """
    settings, kind, database = _chosen(migration, config)
    begun = begin_replay(
        settings, kind, database, start=parse_start(start), selection=parse_selection(where or [], keys or [])
    )
    if as_json:
        starts = [
            {"topic": place.topic, "partition": place.partition, "offset": at} for place, at in begun.starts.items()
        ]
        print(
            json.dumps(
                {
                    "migration": migration,
                    "run": begun.run,
                    "partitions": len(begun.starts),
                    "starts": starts,
                    "selection": begun.selection,
                }
            )
        )
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
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Count the rows that a migration has left to change.

        headrace verify skip_resets

    Exits with 1 if any are left, or if the migration gave something up. With --rows it compares every row of the
    source's table, or of each table of the migration, with the last event of its topic, and prints the keys that
    differ; it exits with 1 if there are any. Table and topic may be in use; the producer must be running.
    """
    if repair and not rows:
        raise UsageError(
            "--repair needs --rows", remedy="without --rows there is nothing to repair: start the migration's consumer"
        )
    if rows:
        _verify_rows(load_settings(config), what, database, repair=repair, as_json=as_json)
        return
    settings, kind, target = _chosen(what, config)
    migration = kind.configure(settings.migration(what))
    with stop_on_signals() as stopping:
        left = remaining(settings, migration, target, stopping)
    given_up = count_given_up(settings, migration, target)
    if as_json:
        print(json.dumps({"migration": what, "database": target, "remaining": left, "given_up": given_up}))
    elif left == 0:
        print(f"{what}: no rows are left to change in {target}")
    if left:
        raise RowsLeft(f"{what}: {left} rows are left to change in {target}")
    if given_up:
        raise WorkGivenUp(f"{what}: {given_up:,} were given up")


def _verify_rows(settings: Settings, what: str, database: str | None, *, repair: bool, as_json: bool) -> None:
    log.configure()
    if "." in what:
        tables, source = [what], database or settings.source_of(what, "--database")
    else:
        kind = catalog.migration_class(settings, what)
        tables, source = list(kind.tables), database or catalog.target_database(settings, kind)
    with stop_on_signals() as stopping:
        found = [compare(settings, source, table, stopping) for table in tables]
    if as_json:
        print(json.dumps([asdict(one) for one in found], default=str))
    else:
        display.show_comparisons(found)
    asked = sum(request_repair(settings, one) for one in found if not one.same) if repair else 0
    for one in found:
        if asked and not one.extra:
            print(f"{asked} rows will be re-snapshotted by the producer; then verify again", file=sys.stderr)
            return
        if not one.same:
            count = len(one.missing) + len(one.extra) + len(one.differing)
            raise TopicDiffers(f"{count} rows of {one.table} in {source} differ from its topic")


def finalize(migration: MigrationArgument, as_json: Json = False, config: Config = None) -> None:
    """Run a consumer until the migration is complete.

        headrace finalize skip_resets

    It works along with running consumers, and waits until the producer's snapshots are done. Exits with 1 if rows are
    left that no event brings or the migration has failed, with 3 while it is paused.
    """
    settings, kind, database = _chosen(migration, config)
    work = kind.configure(settings.migration(migration))
    if work.continuous or settings.migration(migration).continuous:
        raise UsageError(f"{migration} is continuous and never complete", remedy="pause it, or stop its consumers")
    if pauses.is_paused(settings, kind, database):
        raise Refused(f"{migration} is paused", remedy=f"resume it with `headrace resume {migration}`")
    stopping = threading.Event()
    with display.progress(migration, settings, kind, database) as report:
        member = consumer_of(settings, work, database, stopping=stopping, until_complete=True, report=report)
        process_tuning.tune()
        with stop_on_signals(stopping, overdue=member.cancel, cut=member.cut):
            totals = member.run()
    if stopping.is_set():
        raise Interrupted(f"{migration} is not complete yet")
    given_up = count_given_up(settings, work, database)
    if as_json:
        print(json.dumps({"migration": migration, "complete": not given_up, "given_up": given_up, **asdict(totals)}))
    if given_up:
        raise WorkGivenUp(f"{migration} has ended; {given_up:,} were given up")
    if not as_json:
        print(f"{migration} is complete; its consumers exit at once from now on")


def _chosen(migration: str, config: Path | None) -> tuple[Settings, type[Migration], str]:
    settings = load_settings(config)
    kind = catalog.migration_class(settings, migration)
    log.configure()
    return settings, kind, catalog.target_database(settings, kind)


def _dry(settings: Settings, migration: Migration, database: str, as_json: bool) -> None:
    with connect.session(settings.database(database), name=f"check {migration.name}") as connection:
        connect.search(connection, settings.database(database).search_path)
        contract_checks.validate(migration, connection)
    with stop_on_signals() as stopping:
        outcome = dry_run(settings, migration, database, stopping=stopping)
        left = 0 if stopping.is_set() else remaining(settings, migration, database, stopping)
    if stopping.is_set():
        raise Interrupted(f"the dry run of {migration.name} was stopped before the end of its topics")
    result: dict[str, Any] = {
        "migration": migration.name,
        "database": database,
        "dry_run": True,
        "events": outcome.events,
        "changes": outcome.changes,
        "skipped": dict(outcome.skipped),
        "dead_letters": dict(outcome.dead_letters),
        "remaining": left,
    }
    if as_json:
        print(json.dumps(result))
    else:
        display.show_dry_run(result)


COMMANDS: tuple[Callable[..., None], ...] = (
    consume,
    status,
    migrations,
    try_,
    pause,
    resume,
    replay,
    verify,
    finalize,
    cleanup,
    place,
    route,
)

GROUPS: Final[Mapping[str, typer.Typer]] = {
    "dead-letters": dead_letters_command.app,
    "schema": schema_command.app,
    "new": new_command.app,
}
"""Commands that have subcommands."""
