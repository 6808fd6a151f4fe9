"""Runs a consumer in this process, for `headrace consume` and `headrace finalize`."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from consumers.commands.execution import process_tuning
from consumers.commands.execution.named_migration import named_migration
from consumers.commands.execution.progress_bar import progress
from consumers.contract import contract_checks
from consumers.contract.migration import Migration
from consumers.dead_letters.given_up import WorkGivenUp, count_given_up
from consumers.delivery.registry_match import require_registry_of
from consumers.delivery.topics import source_topics
from consumers.operations import catalog, migration_sections, pauses
from consumers.operations import rights as consumer_rights
from consumers.operations.migration_overview import MigrationOverview
from consumers.runtime.assembly import consumer_of
from infra.kafka import clients
from infra.postgres import connect
from infra.rights import kafka_rights
from infra.service import log, service_endpoints
from infra.service.service_state import KAFKA
from infra.service.signals import stop_on_signals
from infra.settings.file import load_settings
from infra.settings.model import Settings
from schemas.errors import Interrupted, Refused, UsageError


def run(migration: str, config: Path | None, *, dry: bool, until_caught_up: bool, as_json: bool) -> None:
    """Run `headrace consume`."""
    settings = load_settings(config)
    kind = catalog.migration_class(settings, migration)
    migration_sections.require_spelt(settings, migration)
    work = kind.configure(settings.migration(migration))
    database = catalog.target_database(settings, kind)
    log.configure(settings.log)
    if not settings.migration(migration).enabled:
        log.get(migration=migration).info("migration disabled")
        return
    if dry:
        _dry(settings, work, database, as_json)
        return
    # A first connection that fails is a mistake in the settings and an error; one that is lost later is retried.
    with connect.session(settings.database(database), name=f"consume {migration}") as connection:
        connect.require_all_rows(connection, (*kind.tables, *kind.writes))
    service_endpoints.serve(settings.metrics, {KAFKA: partial(clients.require_broker, settings.kafka)})
    overview = MigrationOverview(work).export if settings.metrics.port else None
    stopping = threading.Event()
    with progress(migration, settings, kind, database) as report:
        with kafka_rights.named(settings.kafka, lambda: consumer_rights.needed(settings, kind, database)):
            require_registry_of(settings, source_topics(settings, work, database))
            member = consumer_of(
                settings,
                work,
                database,
                stopping=stopping,
                until_caught_up=until_caught_up,
                report=report,
                overview=overview,
            )
            process_tuning.tune()
            with stop_on_signals(stopping, overdue=member.cancel, cut=member.cut, exit_code=0):
                totals = member.run()
    if as_json:
        print(json.dumps({"migration": migration, **asdict(totals)}))
    else:
        log.get(migration=migration).info("stopped" if stopping.is_set() else "caught up", **asdict(totals))


def run_until_complete(migration: str, config: Path | None, *, as_json: bool) -> None:
    """Run `headrace finalize`."""
    settings, kind, database = named_migration(migration, config)
    migration_sections.require_spelt(settings, migration)
    work = kind.configure(settings.migration(migration))
    if work.continuous or settings.migration(migration).continuous:
        raise UsageError(f"{migration} is continuous and never complete", remedy="pause it, or stop its consumers")
    if pauses.is_paused(settings, kind, database):
        raise Refused(f"{migration} is paused", remedy=f"resume it with `headrace resume {migration}`")
    stopping = threading.Event()
    with progress(migration, settings, kind, database) as report:
        require_registry_of(settings, source_topics(settings, work, database))
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


def _dry(settings: Settings, migration: Migration, database: str, as_json: bool) -> None:
    from consumers.operations.dry_run import dry_run
    from consumers.operations.remaining import remaining

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
        from consumers.commands import display

        display.show_dry_run(result)
