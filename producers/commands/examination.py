"""Collects what `headrace check` reports: first what migrations lack, then what the servers and sources do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from infra.cli.advice import Advice, Adviser
from infra.guard import given_away
from infra.kafka import clients, durability, topic_requirements
from infra.kafka.topic_configurations import TopicConfigurations
from infra.service import log
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.state.positions import read_sources
from infra.state.snapshot_requests import RequestRefused
from schemas.codec import implementation
from schemas.errors import HeadraceError


def report(advise: Adviser, names: Sequence[str], config: Path | None, *, as_json: bool) -> None:
    """Print what the named sources and migrations lack, or all; raises typer.Exit with 3 if it is anything."""
    settings = load_settings(config)
    log.configure(settings.log)
    known = (*settings.databases, *settings.virtual_storages)
    sources = [name for name in known if not names or name in names]
    migrations = [name for name in names if name not in known]
    advice = [*advise(settings, migrations)] if migrations or not names else []
    topics = TopicConfigurations(settings.kafka)
    advice += [*_recorded(settings, topics), *_slow()]
    # Not before the servers were asked for the advice: it is a third of the command.
    from producers.commands.source_findings import findings, show

    show(settings, sources, migrations, advice, findings(settings, sources, topics), as_json=as_json)


def _recorded(settings: Settings, topics: TopicConfigurations) -> Iterator[Advice]:
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
        tables = [snapshot.topic for snapshot in state.snapshots.values()]
        for problem, remedy in topic_requirements.forgetful(topics, tables):
            yield Advice(f"databases.{name}", problem, (), remedy)
    yield from durability.weaknesses(settings, topics)
    yield from given_away.advise(settings, sources)


def _slow() -> Iterator[Advice]:
    if implementation.compiled is None:
        yield Advice("headrace", implementation.MISSING, (), implementation.MISSING_REMEDY)
