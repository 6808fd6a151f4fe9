"""The snapshot command: requests a re-snapshot of a table."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated

import typer

from infra.cli.options import Config, Json, Reason, Yes
from infra.service import log
from schemas.errors import UsageError

_KEY_HELP = "Repeat for each column of the key."


def snapshot(
    table: Annotated[str, typer.Argument(help="Such as public.projects.", metavar="TABLE")],
    config: Config = None,
    first: Annotated[
        list[str] | None, typer.Option("--from", metavar="KEY", help=f"The first key to read. {_KEY_HELP}")
    ] = None,
    last: Annotated[
        list[str] | None, typer.Option("--to", metavar="KEY", help=f"The last key to read. {_KEY_HELP}")
    ] = None,
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch", help="First empty its topic by a truncate. Repairs gaps and stopped tables. Asks."
        ),
    ] = False,
    source: Annotated[
        str | None, typer.Option("--source", metavar="NAME", help="Needed if several databases capture the table.")
    ] = None,
    reason: Reason = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Re-snapshot a table, or a range of its keys.

        headrace snapshot public.projects --from 1 --to 1000

    The producer does it, at once or at its next start, while it continues to publish the table's changes; `headrace
    status` shows the progress. It publishes the existing rows. A row that is only in the topic stays there: only
    --from-scratch removes it.
    """
    from infra.settings.file import load_settings
    from infra.state.history import operator
    from infra.state.snapshot_requests import SnapshotRequest
    from producers.session.resnapshot_request import ask

    actor = operator(reason)
    settings = load_settings(config)
    log.configure(settings.log)
    if from_scratch and (first or last):
        raise UsageError("--from-scratch reads the whole table", remedy="omit --from and --to")
    name = source or settings.source_of(table, "--source")
    if from_scratch and not yes:
        typer.confirm(f"Empty the topic of {table} first? Consumers will see a truncate", abort=True, err=True)
    request = SnapshotRequest(
        table=table,
        first=tuple(first) if first else None,
        last=tuple(last) if last else None,
        from_scratch=from_scratch,
    )
    answer = ask(settings, name, request, actor)
    typer.echo(
        jsonlib.dumps({"source": name, "table": table, "from_scratch": from_scratch, "answer": answer})
        if json
        else answer
    )
