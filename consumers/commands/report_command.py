"""The command `headrace report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from infra.cli.options import Config, Json, Reason
from schemas.errors import UsageError


def report(
    migration: Annotated[str, typer.Argument(metavar="MIGRATION", help="The migration's name.", show_default=False)],
    run: Annotated[int | None, typer.Option("--run", help="Which run; by default the last.", min=1)] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="By default MIGRATION-run-N.html here; - for standard output."),
    ] = None,
    database: Annotated[
        str | None, typer.Option("--database", help="For a migration that runs once per database: which one.")
    ] = None,
    reason: Reason = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Write a report of a run as one HTML file.

        headrace report skip_resets --output report.html

    For a change request: progress and rate over time, when it was throttled or paused, dead letters, verifications, who
    did what, and what is not known. The file loads nothing, prints, and follows the reader's light or dark mode.
    --reason is printed in it. Nothing is written to the database, and Kafka need not answer.
    """
    from consumers.operations import catalog
    from consumers.report.facts import gather_facts
    from consumers.report.page import report_page
    from infra.service import log
    from infra.settings.file import load_settings
    from infra.state.history import operator

    author = operator(reason)
    to_stdout = output == Path("-")
    if to_stdout and as_json:
        raise UsageError("--json and --output - would both write to standard output", remedy="name a file")
    settings = load_settings(config)
    log.configure(settings.log)
    kind = catalog.migration_class(settings, migration)
    target = database or catalog.target_database(settings, kind)
    facts = gather_facts(settings, kind.configure(settings.migration(migration)), target, run)
    page = report_page(facts, author)
    if to_stdout:
        print(page, end="")
        return
    path = output or Path(f"{migration}-run-{facts.run}.html")
    try:
        path.write_text(page, encoding="utf-8")
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", remedy="name another file with --output") from error
    if as_json:
        print(json.dumps({"migration": migration, "database": target, "run": facts.run, "file": str(path)}))
    else:
        print(f"report of {migration}, run {facts.run}: {path}")
