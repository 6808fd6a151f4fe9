"""Draws a consumer's progress on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from consumers.contract.migration import Migration
from consumers.delivery.topics import source_topics
from consumers.ledger.progress import Place
from consumers.runtime.totals import Report, Totals
from infra.kafka import topics
from infra.settings.model import Settings
from schemas.positions import Offset


@contextmanager
def progress(migration: str, settings: Settings, kind: type[Migration], database: str) -> Iterator[Report | None]:
    """Yield a function that draws a consumer's progress on standard error; None if that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from infra.cli import tables

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
        console=tables.console(stderr=True),
    )
    ends: dict[Place, int] = {}
    names = source_topics(settings, kind, database)
    with bar:
        task = bar.add_task(migration, total=None, counts="")

        def report(totals: Totals, positions: Mapping[Place, Offset]) -> None:
            if any(position > ends.get(place, -1) for place, position in positions.items()):
                for topic in names:
                    for partition, end in topics.end_offsets(settings.kafka, topic).items():
                        ends[Place(topic, partition)] = end
            bar.update(
                task,
                completed=sum(positions.values()),
                total=sum(ends[place] for place in positions if place in ends) or None,
                counts=f"{totals.applied:,} applied  {totals.skipped:,} skipped  {totals.dead_letters:,} dead letters",
            )

        yield report
