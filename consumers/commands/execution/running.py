"""Runs a consumer in this process, for `headrace consume` and `headrace finalize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from consumers.commands.execution.named_migration import named_migration
from consumers.contract import contract_checks
from consumers.contract.migration import Migration
from consumers.operations import catalog, migration_sections, pauses
from infra.postgres import connect
from infra.service import log
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
    # Neither a disabled migration needs it, nor one whose database does not answer.
    from consumers.commands.execution.membership import consume_until_stopped

    consume_until_stopped(settings, work, database, until_caught_up=until_caught_up, as_json=as_json)


def run_until_complete(migration: str, config: Path | None, *, as_json: bool) -> None:
    """Run `headrace finalize`."""
    settings, kind, database = named_migration(migration, config)
    migration_sections.require_spelt(settings, migration)
    work = kind.configure(settings.migration(migration))
    if work.continuous or settings.migration(migration).continuous:
        raise UsageError(f"{migration} is continuous and never complete", remedy="pause it, or stop its consumers")
    if pauses.is_paused(settings, kind, database):
        raise Refused(f"{migration} is paused", remedy=f"resume it with `headrace resume {migration}`")
    from consumers.commands.execution.membership import consume_until_complete

    consume_until_complete(settings, work, database, as_json=as_json)


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
