"""The commands of sources: produce, check."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from infra import kafka, log, metrics
from infra.options import Config, Json, Yes
from infra.postgres import connect, translated
from infra.registry import open_registry
from infra.settings import Settings, load_settings
from infra.stopping import stop_on_signals
from producers import preflight, startup
from producers.producer import produce as run_producer
from producers.snapshot_cli import snapshot
from producers.start_over import start_over as forget_source
from producers.switchover_cli import switchover
from producers.walk_producer import walk
from schemas.errors import HeadraceError, PreflightFailed, UsageError


def produce(
    source: Annotated[
        str,
        typer.Argument(help="A [databases.NAME] or [virtual_storages.NAME] of the settings.", metavar="SOURCE"),
    ],
    config: Config = None,
    start_over: Annotated[
        bool,
        typer.Option("--start-over", help="First drop the source's slot, and read every table anew. Asks."),
    ] = False,
    all_storages: Annotated[
        bool,
        typer.Option("--all-storages", help="Of a virtual storage, walk the storages beside the primary too."),
    ] = False,
    yes: Yes = False,
) -> None:
    """Stream a database's tables into Kafka, as a service; or walk a virtual storage's repositories, once.

    Reads each table once, then follows its changes. Ctrl-C or SIGTERM stops it cleanly, SIGKILL does no harm: the next
    start goes on where it was. A second producer of the same source takes over from the first.

    A walk reads the primary storage from its beginning and ends: exit code 0 when every directory was read. One that
    was stopped publishes no end, and the next start walks anew.
    """
    settings = load_settings(config)
    if source in settings.virtual_storages:
        if start_over:
            raise UsageError("a walk always starts over", remedy=f"run `headrace produce {source}`")
        log.configure()
        with stop_on_signals() as stop:
            walk(settings, source, stop, all_storages=all_storages)
        return
    settings.database(source)
    if all_storages:
        raise UsageError(f"{source} is a database, and has no storages", remedy="leave out --all-storages")
    log.configure()
    if start_over:
        if not yes:
            typer.confirm(
                f"Drop the slot of {source}, empty its topics and read every table anew?",
                abort=True,
                err=True,
            )
        forget_source(settings, source)
    metrics.serve(settings.metrics)
    with stop_on_signals() as stop:
        run_producer(settings, source, stop)


def check(config: Config = None, json: Json = False) -> None:
    """Say what is missing before sources can be read and migrations can run; changes nothing.

    Exit code 3 when something is missing.
    """
    settings = load_settings(config)
    found = [{"where": where, "problem": problem, "remedy": remedy} for where, problem, remedy in _findings(settings)]
    if json:
        typer.echo(jsonlib.dumps({"findings": found}))
    for finding in [] if json else found:
        typer.echo(f"{finding['where']}: {finding['problem']}; {finding['remedy']}")
    if found:
        raise typer.Exit(PreflightFailed.exit_code)
    if not json:
        typer.echo(f"ready: Kafka, the registry and {len(settings.databases)} database(s)")


def _findings(settings: Settings) -> Iterator[tuple[str, str, str]]:
    try:
        kafka.ensure_reachable(settings.kafka)
        if settings.registry.url:
            open_registry(settings)
    except HeadraceError as error:
        yield "kafka", error.problem, error.remedy
    for name, database in settings.databases.items():
        dsn = database.dsn.get_secret_value()
        try:
            with connect(dsn, name="check") as connection, translated(dsn):
                slot = startup.slot_name(settings, name, database)
                for finding in preflight.findings(connection, name, database, slot, settings.prefix):
                    yield f"databases.{name}", finding.problem, finding.remedy
        except HeadraceError as error:
            yield f"databases.{name}", error.problem, error.remedy


COMMANDS: tuple[Callable[..., None], ...] = (produce, check, snapshot, switchover)
