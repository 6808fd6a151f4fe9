"""Carries out the release of `headrace schema backfill`, which runs a consumer, and prints what it did."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from consumers.commands.execution import process_tuning
from consumers.commands.execution.progress_bar import progress
from consumers.commands.execution.releases import Site, opened, record, require
from consumers.contract.backfill import Backfill
from consumers.operations import migration_sections, pauses
from consumers.operations.replay import replay
from consumers.runtime.assembly import consumer_of
from consumers.runtime.completion import RowsLeft
from consumers.schema.plan import Release
from infra.service.signals import stop_on_signals
from infra.state.history import operator
from schemas.errors import Interrupted, Refused, UsageError


def backfill(migration: str, config: Path | None, *, down: bool, reason: str | None, as_json: bool) -> None:
    """Run `headrace schema backfill`."""
    if reason is not None and not down:
        raise UsageError("--reason needs --down", remedy="a backfill is recorded by its progress: omit it")
    with opened(migration, config, operator(reason)) as site:
        if down:
            _withdraw(site, as_json)
            return
        migration_sections.require_spelt(site.settings, migration)
        require(site, Release.BACKFILL)
        if not site.settings.migration(migration).enabled:
            raise Refused(f"{migration} is disabled", remedy="enable it in its settings or environment")
        if pauses.is_paused(site.settings, site.kind, site.database):
            raise Refused(f"{migration} is paused", remedy=f"resume it with `headrace resume {migration}`")
        record(site, complete=False)
        with progress(migration, site.settings, site.kind, site.database) as report:
            member = consumer_of(
                site.settings,
                _until_complete(site.kind).configure(site.settings.migration(migration)),
                site.database,
                stopping=site.stopping,
                until_complete=True,
                report=report,
            )
            process_tuning.tune()
            try:
                with stop_on_signals(site.stopping, overdue=member.cancel, cut=member.cut):
                    totals = member.run()
            except RowsLeft as error:
                raise RowsLeft(
                    error.problem,
                    remedy=f"if an application still writes such rows, keep `headrace consume {migration}` running;"
                    f" else see `headrace dead-letters list {migration}`, or `headrace snapshot {site.kind.table}`",
                ) from None
        if site.stopping.is_set():
            raise Interrupted(f"{migration} is not complete yet")
        record(site, complete=False)
        if as_json:
            print(json.dumps({**site.document(Release.BACKFILL), **asdict(totals)}))
        else:
            print(f"every row of {site.kind.table} has a {site.kind.column}; {totals.applied:,} were filled")


def _withdraw(site: Site, as_json: bool) -> None:
    require(site, Release.BACKFILL_DOWN)
    begun = site.found().begun
    run = (
        replay(site.settings, site.kind, site.database, reason="backfill --down", actor=site.actor).run
        if begun
        else None
    )
    if as_json:
        print(json.dumps({**site.document(Release.BACKFILL_DOWN), "run": run}))
    elif begun:
        print(f"the next backfill of {site.kind.table} is run {run} and reads all events again; the values stay")
    else:
        print(f"nothing to undo: no run of {site.kind.name} has read events")


def _until_complete(kind: type[Backfill]) -> type[Backfill]:
    """Return the backfill as a migration that is complete once every row has a value."""

    class UntilComplete(kind):  # type: ignore[valid-type, misc]
        continuous = False

    return UntilComplete
