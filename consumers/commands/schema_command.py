"""The commands of a backfill's three releases: expand, backfill, contract; --down undoes each."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.cli.options import Config, Json, Reason, Yes

app = typer.Typer(
    help="""Add a NOT NULL column without blocking, in three releases.

        headrace schema expand status_backfills

    `expand` adds the column, `backfill` fills every row, `contract` forbids rows without a value. Deploy the
    application that writes the column after `expand` and before `contract`. Each release can be run again, resumes
    where it was killed, and is undone by --down; out of order it is refused, with exit code 3.
    """,
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="MIGRATION", help="The backfill's name.", show_default=False)]
Down = Annotated[bool, typer.Option("--down", help="Undo the release.")]


@app.command()
def expand(
    migration: Name,
    down: Down = False,
    reason: Reason = None,
    yes: Yes = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Add the nullable column and its checks.

        headrace schema expand status_backfills

    A statement that waits for a lock on the table blocks all later ones, so none waits longer than the migration's
    `lock_timeout_ms`; it is retried for `patience_seconds`. --down drops the column, after confirmation, unless it has
    values other than the backfill's.
    """
    from consumers.commands.execution import releases

    releases.expand(migration, config, down=down, yes=yes, reason=reason, as_json=as_json)


@app.command()
def backfill(
    migration: Name, down: Down = False, reason: Reason = None, as_json: Json = False, config: Config = None
) -> None:
    """Fill the column in every row.

        headrace schema backfill status_backfills

    It works along with running consumers, and waits until the producer's snapshots are done. Consumers that run as
    services (`headrace consume MIGRATION`) continue afterwards, and fill rows that an application still writes without
    a value. With --down the next backfill reads all events again; the values stay, since the application's values
    cannot be distinguished from the backfill's.
    """
    from consumers.commands.execution import backfill_release

    backfill_release.backfill(migration, config, down=down, reason=reason, as_json=as_json)


@app.command()
def contract(
    migration: Name, down: Down = False, reason: Reason = None, as_json: Json = False, config: Config = None
) -> None:
    """Forbid rows without a value.

        headrace schema contract status_backfills

    Every application must write the column first. Refused while rows have no value; if one is written meanwhile, the
    check is dropped again. Afterwards the migration is complete, and its consumers may be stopped. --down allows such
    rows again.
    """
    from consumers.commands.execution import releases

    releases.contract(migration, config, down=down, reason=reason, as_json=as_json)
