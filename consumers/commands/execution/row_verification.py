"""Compares tables with their topics, row by row, for `headrace verify --rows`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from consumers.commands.execution.verification import record_verified
from consumers.compare.comparison import TopicDiffers, compare
from consumers.compare.repair import request_repair
from consumers.operations import catalog
from infra.service import log
from infra.service.signals import stop_on_signals
from infra.settings.file import load_settings
from infra.state.history import Actor


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
        record_verified(settings, source, one.table, actor, rows=one.rows, **counts)
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
