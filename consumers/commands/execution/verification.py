"""Counts the rows that a migration has left, and compares tables with topics, for `headrace verify`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from consumers.commands.execution.named_migration import named_migration
from consumers.compare.comparison import TopicDiffers, compare
from consumers.compare.repair import request_repair
from consumers.dead_letters.given_up import WorkGivenUp, count_given_up
from consumers.operations import catalog
from consumers.operations.remaining import remaining
from consumers.runtime.completion import RowsLeft
from infra.postgres import connect
from infra.service import log
from infra.service.signals import stop_on_signals
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.state.history import Actor, OperatorAction, record_action


def verify_migration(config: Path | None, what: str, actor: Actor, *, as_json: bool) -> None:
    """Run `headrace verify` for a migration."""
    settings, kind, target = named_migration(what, config)
    migration = kind.configure(settings.migration(what))
    with stop_on_signals() as stopping:
        left = remaining(settings, migration, target, stopping)
    given_up = count_given_up(settings, migration, target)
    _record(settings, target, what, actor, remaining=left, given_up=given_up)
    if as_json:
        print(json.dumps({"migration": what, "database": target, "remaining": left, "given_up": given_up}))
    elif left == 0:
        print(f"{what}: no rows are left to change in {target}")
    if left:
        raise RowsLeft(f"{what}: {left} rows are left to change in {target}")
    if given_up:
        raise WorkGivenUp(f"{what}: {given_up:,} were given up")


def verify_rows(
    config: Path | None, what: str, database: str | None, actor: Actor, *, repair: bool, as_json: bool
) -> None:
    """Run `headrace verify --rows` for a table, or for each of a migration."""
    settings = load_settings(config)
    log.configure(settings.log)
    if "." in what:
        tables, source = [what], database or settings.source_of(what, "--database")
    else:
        kind = catalog.migration_class(settings, what)
        tables, source = list(kind.tables), database or catalog.target_database(settings, kind)
    with stop_on_signals() as stopping:
        found = [compare(settings, source, table, stopping) for table in tables]
    for one in found:
        counts = {"missing": len(one.missing), "extra": len(one.extra), "differing": len(one.differing)}
        _record(settings, source, one.table, actor, rows=one.rows, **counts)
    if as_json:
        print(json.dumps([asdict(one) for one in found], default=str))
    else:
        from consumers.commands import display

        display.show_comparisons(found)
    asked = sum(request_repair(settings, one, actor) for one in found if not one.same) if repair else 0
    for one in found:
        if asked and not one.extra:
            print(f"{asked} rows will be re-snapshotted by the producer; then verify again", file=sys.stderr)
            return
        if not one.same:
            count = len(one.missing) + len(one.extra) + len(one.differing)
            raise TopicDiffers(f"{count} rows of {one.table} in {source} differ from its topic")


def _record(settings: Settings, database: str, subject: str, actor: Actor, **found: int) -> None:
    """Record what was found, where the database can be written."""
    with connect.session(settings.database(database), name=f"verify {subject}") as connection:
        if not connect.is_standby(connection):
            record_action(connection, OperatorAction.VERIFY, [subject], actor, if_permitted=True, **found)
