"""The command `headrace produce`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.options import Config, Reason, Yes
from schemas.errors import UsageError

if TYPE_CHECKING:
    from infra.rights import kafka_rights
    from infra.settings.model import Settings


def produce(
    source: Annotated[
        str,
        typer.Argument(help="A [databases.NAME] or [virtual_storages.NAME] from the settings.", metavar="SOURCE"),
    ],
    config: Config = None,
    start_over: Annotated[
        bool,
        typer.Option("--start-over", help="First drop the source's slot, then re-snapshot every table. Asks."),
    ] = False,
    all_storages: Annotated[
        bool,
        typer.Option("--all-storages", help="Walk all storages of a virtual storage, not only the primary."),
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Walk a virtual storage even if Praefect has imported it.")
    ] = False,
    until_imported: Annotated[
        bool,
        typer.Option("--until-imported", help="As a service: walk a virtual storage until Praefect has imported it."),
    ] = False,
    reason: Reason = None,
    yes: Yes = False,
) -> None:
    """Stream a database, or walk a virtual storage, into Kafka.

        headrace produce main

    For a database, runs as a service: snapshots each table, then follows its changes. Ctrl-C or SIGTERM stops it
    cleanly; after SIGKILL the next start resumes safely. A second producer of the same source takes over from the
    first.

    For a virtual storage, walks the primary storage once; exit code 0 when every directory was read. A stopped walk
    publishes no end, and the next start walks from the beginning. The walk is skipped if `repositories_imported` is set
    for the virtual storage in Praefect's database. With --until-imported it repeats the walk with growing pauses until
    that is set, then exits with 0; of several such processes one walks.
    """
    from infra.settings.file import load_settings

    if reason is not None and not start_over:
        raise UsageError("--reason needs --start-over", remedy="a start is not recorded: omit it")
    settings = load_settings(config)
    if source in settings.virtual_storages:
        if start_over:
            raise UsageError("a walk always starts from the beginning", remedy=f"run `headrace produce {source}`")
        _walk(settings, source, again=again, until_imported=until_imported, all_storages=all_storages)
        return
    settings.database(source)
    for option, given in (("--all-storages", all_storages), ("--again", again), ("--until-imported", until_imported)):
        if given:
            raise UsageError(f"{source} is a database and has no storages", remedy=f"omit {option}")
    _stream(settings, source, start_over=start_over, reason=reason, yes=yes)


def _stream(settings: Settings, source: str, *, start_over: bool, reason: str | None, yes: bool) -> None:
    from infra.kafka import clients
    from infra.rights import kafka_rights
    from infra.service import log
    from infra.service.signals import stop_on_signals

    log.configure(settings.log)
    if start_over:
        from infra.state.history import operator
        from producers.session.start_over import start_over as forget_source

        actor = operator(reason)
        if not yes:
            typer.confirm(
                f"Drop the slot of {source}, empty its topics and re-snapshot every table?", abort=True, err=True
            )
        forget_source(settings, source, actor)
    _serve(settings)
    with stop_on_signals(exit_code=0) as stop, kafka_rights.named(settings.kafka, lambda: _needed(settings, source)):
        clients.ensure_reachable(settings.kafka)
        # Half of the command: not before Kafka has answered.
        from producers.session.service import produce as run_producer

        run_producer(settings, source, stop)


def _walk(settings: Settings, source: str, *, again: bool, until_imported: bool, all_storages: bool) -> None:
    from infra.service import log
    from infra.service.service_state import THIS
    from infra.service.signals import stop_on_signals
    from producers.walk.run import walk
    from producers.walk.until_imported import walk_unless_imported, walk_until_imported

    if again and until_imported:
        raise UsageError("--again and --until-imported exclude each other")
    walks = walk if again else walk_until_imported if until_imported else walk_unless_imported
    log.configure(settings.log)
    if until_imported:
        # Each wait of a walk is one for its servers, of which the probe covers Kafka.
        THIS.working()
        _serve(settings)
    with stop_on_signals() as stop:
        walks(settings, source, stop, all_storages=all_storages)


def _serve(settings: Settings) -> None:
    if not settings.metrics.port:
        return  # without importing prometheus_client
    from infra.kafka import clients
    from infra.service import service_endpoints, service_state

    service_endpoints.serve(settings.metrics, {service_state.KAFKA: partial(clients.require_broker, settings.kafka)})


def _needed(settings: Settings, source: str) -> kafka_rights.Needed:
    from infra.postgres.connect import session
    from producers.source import rights as producer_rights

    with session(settings.database(source), name=f"rights {source}", reading=True) as connection:
        return producer_rights.needed(connection, settings, source)
