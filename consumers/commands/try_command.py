"""The command `headrace try`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from infra.cli.options import Config, Json
from schemas.errors import printable

if TYPE_CHECKING:
    from consumers.operations.authoring.trial import Trial

_OPERATIONS: Final = {"r": "read by a snapshot", "c": "insert", "u": "update", "d": "delete", "t": "truncate"}


def try_(
    migration: Annotated[str, typer.Argument(metavar="MIGRATION", help="The migration's name.", show_default=False)],
    key: Annotated[
        list[str],
        typer.Option("--key", metavar="VALUE", help="The row's key; COLUMN=VALUE for each of several columns."),
    ],
    table: Annotated[
        str | None, typer.Option("--table", metavar="SCHEMA.TABLE", help="If the migration reads several.")
    ] = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Show what a migration does with one row; write nothing.

        headrace try skip_resets --key 5

    Decides on the latest event of the row in its topic. What that leads to is executed in a transaction that is rolled
    back, and shown with its values; it locks the row for that moment, and triggers run. Work outside of the database
    is not done.
    """
    from consumers.operations import catalog
    from consumers.operations.authoring.trial import attempt
    from infra.service import log
    from infra.settings.file import load_settings

    settings = load_settings(config)
    kind = catalog.migration_class(settings, migration)
    log.configure(settings.log)
    database = catalog.target_database(settings, kind)
    found = attempt(settings, kind.configure(settings.migration(migration)), database, key, table)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print("\n".join(_lines(found)))


def _lines(found: Trial) -> list[str]:
    row = ", ".join(f"{column}={value}" for column, value in found.key.items())
    operation = _OPERATIONS.get(found.operation or "", "tombstone")
    lines = [
        f"row: {row} of {found.table}",
        f"event: {operation}, at offset {found.offset} of {found.topic}/{found.partition}",
        f"decision: {found.decision}{f', {found.reason}' if found.reason else ''}",
    ]
    if found.changed is not None:
        would = "would change" if found.changed else "would not change"
        lines.append(f"in {found.database} it {would} the row; executed and rolled back:")
        lines += [f"  {statement}" for statement in found.statements]
    else:
        lines.append("no SQL is executed for it")
    return [printable(line) if not line.startswith("  ") else f"  {printable(line)}" for line in lines]
