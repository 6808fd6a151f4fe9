"""The commands of sources: produce, check."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer

from infra.cli.advice import Advice, Adviser
from infra.cli.options import Config, Json, Yes
from infra.guard import given_away
from infra.kafka import clients, denials, durability, topic_requirements
from infra.postgres.connect import session
from infra.rights import kafka_rights
from infra.schema_registry.topic_registry import ensure_answers, ensure_registers
from infra.service import log, service_endpoints, service_state
from infra.service.signals import stop_on_signals
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.state.positions import Positions, read_sources
from infra.state.snapshot_requests import RequestRefused
from producers.commands.guard_command import guard
from producers.commands.snapshot_command import snapshot
from producers.commands.switchover_command import switchover
from producers.publish.registry_check import changed_registry
from producers.session.check import contradicted_patterns, hindrances, outlook
from producers.session.service import produce as run_producer
from producers.session.slot_monitor import Forecast
from producers.session.start_over import start_over as forget_source
from producers.source import rights as producer_rights
from producers.source.preflight import Finding
from producers.walk.run import storage_walk_topic, walk
from producers.walk.until_imported import walk_unless_imported, walk_until_imported
from schemas.codec import implementation
from schemas.errors import HeadraceError, PreflightFailed, UsageError, printable


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
    yes: Yes = False,
) -> None:
    """Stream a database, or walk a virtual storage, into Kafka.

    For a database, runs as a service: snapshots each table, then follows its changes. Ctrl-C or SIGTERM stops it
    cleanly; after SIGKILL the next start resumes safely. A second producer of the same source takes over from the
    first.

    For a virtual storage, walks the primary storage once; exit code 0 when every directory was read. A stopped walk
    publishes no end, and the next start walks from the beginning. The walk is skipped if `repositories_imported` is set
    for the virtual storage in Praefect's database. With --until-imported it repeats the walk with growing pauses until
    that is set, then exits with 0; of several such processes one walks.

    Example: headrace produce main
    """
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
    log.configure()
    if start_over:
        if not yes:
            typer.confirm(
                f"Drop the slot of {source}, empty its topics and re-snapshot every table?", abort=True, err=True
            )
        forget_source(settings, source)
    _serve(settings)
    with stop_on_signals() as stop, kafka_rights.named(settings.kafka, lambda: _needed(settings, source)):
        run_producer(settings, source, stop)


def _walk(settings: Settings, source: str, *, again: bool, until_imported: bool, all_storages: bool) -> None:
    if again and until_imported:
        raise UsageError("--again and --until-imported exclude each other")
    walks = walk if again else walk_until_imported if until_imported else walk_unless_imported
    log.configure()
    if until_imported:
        # Each wait of a walk is one for its servers, of which the probe covers Kafka.
        service_state.THIS.working()
        _serve(settings)
    with stop_on_signals() as stop:
        walks(settings, source, stop, all_storages=all_storages)


def _serve(settings: Settings) -> None:
    service_endpoints.serve(settings.metrics, {service_state.KAFKA: partial(clients.require_broker, settings.kafka)})


def _needed(settings: Settings, source: str) -> kafka_rights.Needed:
    with session(settings.database(source), name=f"rights {source}", reading=True) as connection:
        return producer_rights.needed(connection, settings, source)


def commands(advise: Adviser) -> tuple[Callable[..., None], ...]:
    """Return the commands; `advise` returns problems of the migrations and possible improvements."""

    def check(
        names: Annotated[
            list[str] | None,
            typer.Argument(metavar="[NAME]...", help="Check only these sources and migrations.", show_default=False),
        ] = None,
        config: Config = None,
        json: Json = False,
    ) -> None:
        """Report what sources and migrations need before they can run.

        Changes nothing. Exit code 3 when something is missing. If producers and consumers have separate roles and
        principals, run it as each, with the names of the sources and migrations that it runs.

        For a source that cannot resume it reports the reason and the remedy; for each slot the WAL that it retains, and
        when it is lost if nothing reads it; for each migration what prevents it from running, such as an error in its
        file, an unknown setting or a table that is not captured, and an index that would make it faster; for a table
        that another database owns whether it was written here, and whether the guard rejects writes.

        Example: headrace check main skip_resets
        """
        settings = load_settings(config)
        log.configure()
        known = (*settings.databases, *settings.virtual_storages)
        sources = [name for name in known if not names or name in names]
        migrations = [name for name in names or () if name not in known]
        advice = [*advise(settings, migrations)] if migrations or not names else []
        _check(settings, sources, [*advice, *_recorded(settings), *_slow()], json)

    return (produce, check, snapshot, switchover, guard)


def _check(settings: Settings, sources: list[str], advice: list[Advice], json: bool) -> None:
    found: list[dict[str, Any]] = []
    slots: list[tuple[str, Forecast]] = []
    for where, finding in _examined(settings, sources):
        if isinstance(finding, Forecast):
            slots.append((where, finding))
        elif isinstance(finding, Advice):
            advice = [*advice, finding]
        else:
            found.append({"where": where, **asdict(finding)})
    for each in advice:
        if each.blocks:
            found.append(each.document())
    advice = [each for each in advice if not each.blocks]
    if json:
        described = [forecast.document(where.partition(".")[2]) for where, forecast in slots]
        advised = [each.document() for each in advice]
        typer.echo(jsonlib.dumps({"findings": found, "slots": described, "advice": advised}))
    for one in [] if json else found:
        lines = [f"{one['where']}: {one['problem']}; {one['remedy']}", *one["shown"]]
        typer.echo("\n".join(map(printable, lines)))
    for where, forecast in [] if json else slots:
        typer.echo(printable(f"{where}: {'WARNING: ' if forecast.at_risk else ''}{forecast}"))
    for each in [] if json else advice:
        typer.echo(str(each))
    if found:
        raise typer.Exit(PreflightFailed.exit_code)
    if not json:
        databases = [name for name in sources if name in settings.databases]
        typer.echo(f"ready: Kafka, the registry and {len(databases)} database(s)")


def _recorded(settings: Settings) -> Iterator[Advice]:
    """Yield advice from the positions that blocks no start."""
    try:
        clients.ensure_reachable(settings.kafka)
        sources = read_sources(settings)
    except HeadraceError:
        return  # reported as a finding; without the positions nothing is known
    for name, state in sources.items():
        if state.stream is not None and state.stream.refused_request is not None:
            problem = f"the last request to re-snapshot a table was refused: {state.stream.refused_request}"
            yield Advice(f"databases.{name}", problem, (), RequestRefused.__doc__ or "")
        topics = [snapshot.topic for snapshot in state.snapshots.values()]
        for problem, remedy in topic_requirements.forgetful(settings.kafka, topics):
            yield Advice(f"databases.{name}", problem, (), remedy)
    yield from durability.weaknesses(settings)
    yield from given_away.advise(settings, sources)


def _slow() -> Iterator[Advice]:
    if implementation.compiled is None:
        yield Advice("headrace", implementation.MISSING, (), implementation.MISSING_REMEDY)


def _examined(settings: Settings, sources: list[str]) -> Iterator[tuple[str, Finding | Forecast | Advice]]:
    positions: Positions | None = None
    try:
        clients.ensure_reachable(settings.kafka)
        positions = Positions(settings.prefix, settings.kafka)
    except HeadraceError as error:
        yield "kafka", Finding(error.problem, error.remedy, error.shown)
    try:
        ensure_answers(settings)
    except HeadraceError as error:
        yield "registry", Finding(error.problem, error.remedy, error.shown)
    else:
        yield from (("registry", finding) for finding in _of_registry(settings, sources, positions))
    for name in sources:
        if name in settings.virtual_storages:
            yield from _of_walks(settings, name, positions)
            continue
        try:
            with session(settings.databases[name], name="check", reading=True) as connection:
                for finding in hindrances(connection, settings, name, positions):
                    yield f"databases.{name}", finding
                forecast = outlook(connection, settings, name, positions)
                if forecast is not None:
                    yield f"databases.{name}", forecast
                for advice in contradicted_patterns(connection, settings, name):
                    yield advice.where, advice
        except HeadraceError as error:
            yield f"databases.{name}", Finding(error.problem, error.remedy, error.shown)


def _of_registry(settings: Settings, sources: list[str], positions: Positions | None) -> Iterator[Finding]:
    """Yield the recorded topics whose schemas the registry does not have, and what it denies to producers."""
    try:
        recorded = {name: state.snapshots for name, state in positions.sources().items()} if positions else {}
        changed = list(changed_registry(settings, recorded))
    except HeadraceError:
        return  # reported by another check
    yield from (Finding(each.problem, each.remedy) for each in changed)
    topics = [each.topic for name in sources for each in recorded.get(name, {}).values()]
    if sources and not changed:
        try:
            ensure_registers(settings, topics)
        except HeadraceError as error:
            yield Finding(error.problem, error.remedy)


def _of_walks(settings: Settings, name: str, positions: Positions | None) -> Iterator[tuple[str, Finding]]:
    """Yield the Kafka rights that a walk of a virtual storage lacks; does not connect to the storage."""
    if positions is None:
        return
    where = f"virtual_storages.{name}"
    try:
        found = kafka_rights.lacking(
            settings.kafka, producer_rights.acls(settings, name), [storage_walk_topic(settings)]
        )
    except HeadraceError as error:
        yield where, Finding(error.problem, error.remedy, error.shown)
        return
    if found:
        problem = f"Kafka denies {denials.principal(settings.kafka)} {kafka_rights.listed(found)}"
        yield where, Finding(problem, f"grant it: `headrace init --acls {name}` prints what is needed")
