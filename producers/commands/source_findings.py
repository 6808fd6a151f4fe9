"""Finds what Kafka, the registry and sources lack, for `headrace check`, and prints it with the advice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import typer

from infra.cli.advice import Advice
from infra.kafka import clients, denials
from infra.kafka.topic_configurations import TopicConfigurations
from infra.postgres.connect import session
from infra.rights import kafka_rights
from infra.schema_registry.topic_registry import ensure_answers, ensure_registers
from infra.settings.model import Settings
from infra.state.positions import Positions
from producers.publish.registry_check import changed_registry
from producers.session.check import hindrances, of_tables, outlook, slot_now
from producers.session.slot_monitor import Forecast
from producers.source import rights as producer_rights
from producers.source.preflight import Finding
from schemas.errors import HeadraceError, PreflightFailed, printable


def show(
    settings: Settings,
    sources: Sequence[str],
    migrations: Sequence[str],
    advice: Sequence[Advice],
    examined: Iterable[tuple[str, Finding | Forecast | Advice]],
    *,
    as_json: bool,
) -> None:
    """Print findings and advice, each found with where it was; raises typer.Exit with 3 if one prevents a start."""
    found: list[dict[str, Any]] = []
    slots: list[tuple[str, Forecast]] = []
    advised = [*advice]
    for where, finding in examined:
        if isinstance(finding, Forecast):
            slots.append((where, finding))
        elif isinstance(finding, Advice):
            advised.append(finding)
        else:
            found.append({"where": where, **asdict(finding)})
    found += [each.document() for each in advised if each.blocks]
    advised = [each for each in advised if not each.blocks]
    if as_json:
        described = [forecast.document(where.partition(".")[2]) for where, forecast in slots]
        documents = [each.document() for each in advised]
        print(json.dumps({"findings": found, "slots": described, "advice": documents}))
    for one in [] if as_json else found:
        lines = [f"{one['where']}: {one['problem']}; {one['remedy']}", *one["shown"]]
        print("\n".join(map(printable, lines)))
    for where, forecast in [] if as_json else slots:
        print(printable(f"{where}: {'WARNING: ' if forecast.at_risk else ''}{forecast}"))
    for each in [] if as_json else advised:
        print(str(each))
    if found:
        raise typer.Exit(PreflightFailed.exit_code)
    if not as_json:
        print(printable(_ready(settings, sources, migrations)))


def _ready(settings: Settings, sources: Sequence[str], migrations: Sequence[str]) -> str:
    examined = ["Kafka", "the registry"] if settings.registry.url else ["Kafka"]
    for what, names in (
        ("database", [name for name in sources if name in settings.databases]),
        ("virtual storage", [name for name in sources if name in settings.virtual_storages]),
        ("migration", migrations),
    ):
        if names:
            examined.append(f"{what}{'s' if len(names) > 1 else ''} {', '.join(names)}")
    return f"ready: {'; '.join(examined)}"


def findings(
    settings: Settings, sources: Sequence[str], topics: TopicConfigurations
) -> Iterator[tuple[str, Finding | Forecast | Advice]]:
    """Yield what prevents the sources' starts, the forecasts of their slots, and advice, each with its place."""
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
                before = slot_now(connection, settings, name)
                for finding in hindrances(connection, settings, name, positions, topics):
                    yield f"databases.{name}", finding
                forecast = outlook(connection, settings, name, positions, before)
                if forecast is not None:
                    yield f"databases.{name}", forecast
                yield from ((advice.where, advice) for advice in of_tables(connection, settings, name))
        except HeadraceError as error:
            yield f"databases.{name}", Finding(error.problem, error.remedy, error.shown)


def _of_registry(settings: Settings, sources: Sequence[str], positions: Positions | None) -> Iterator[Finding]:
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
    from producers.walk.run import storage_walk_topic  # few settings have a virtual storage

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
