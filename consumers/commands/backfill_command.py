"""The command `headrace new backfill`, which writes a migration without code into the settings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from infra.cli.options import Config, Json, Yes
from schemas.errors import UsageError, printable

if TYPE_CHECKING:
    from consumers.operations.authoring.new_backfill import Estimate

_PLAN_WIDTH: Final = 100
"""A condition of the plan has a hundred keys."""


def backfill(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as lower_emails.", show_default=False)],
    table: Annotated[str | None, typer.Option("--table", metavar="SCHEMA.TABLE", help="The table.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="COLUMN=EXPRESSION", help="What it sets, in SQL. Repeatable.")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", metavar="CONDITION", help="Which rows still need it, in SQL.")
    ] = None,
    prefilter: Annotated[
        str | None, typer.Option("--prefilter", metavar="CONDITION", help="Which events may need it.")
    ] = None,
    gitlab_schema: Annotated[
        str | None, typer.Option("--gitlab-schema", help="Of the table, if headrace does not know it.")
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Write a migration without code into the settings.

        headrace new backfill lower_emails --table public.users --set "email=lower(email)"

    Asks on a terminal for what is missing. Checks it on the server, shows the plan of one batch, and how many rows and
    how much time it needs; then it adds a section to the settings. Nothing is run.
    """
    from consumers.declared.declaration import schema_of
    from consumers.operations import catalog
    from consumers.operations.authoring.new_backfill import append, prepared, text_of_section
    from infra.settings.declare import DeclareSettings
    from infra.settings.file import load_settings, settings_path
    from infra.settings.model import PATTERN_WORDS
    from infra.settings.section import NAME_PATTERN

    settings, path = load_settings(config), settings_path(config)
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"{name!r} cannot be the name of a migration", remedy=PATTERN_WORDS[NAME_PATTERN])
    if name in catalog.migrations(settings) or name in settings.migrations:
        raise UsageError(f"there is a migration {name} already, or a section of it", remedy="choose another name")
    asked = not (table and sets and where)
    table = table or _ask("--table", "Table, such as public.users")
    assignments = _assignments(sets or [_ask("--set", "What it sets, such as email=lower(email)")])
    where = where or _ask("--where", "Which rows still need it", f"{next(iter(assignments))} IS NULL")
    label = gitlab_schema or schema_of(settings, table)
    section = DeclareSettings(
        table=table, gitlab_schema=gitlab_schema, where=where, set=assignments, prefilter=prefilter
    )
    section, estimate = prepared(settings, name, section, label, str(path), find_key=True)
    text = text_of_section(name, section)
    if not as_json:
        print("\n".join([text, *_lines(estimate)]))
    if (asked or _on_a_terminal()) and not yes:
        typer.confirm(f"Add this section to {path}?", abort=True, err=as_json)
    append(path, text)
    if as_json:
        document = {"migration": name, "file": str(path), "section": text, **asdict(estimate)}
        print(json.dumps({**document, "seconds": estimate.seconds}))
    else:
        print(f"added to {path}; run it with: headrace consume {name}")


def _assignments(sets: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in sets:
        column, equals, expression = (part.strip() for part in each.partition("="))
        if not (column and equals and expression) or column in found:
            raise UsageError(
                f"--set {each!r} is not COLUMN=EXPRESSION of another column",
                remedy='for example: --set "email=lower(email)"',
            )
        found[column] = expression
    return found


def _on_a_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _ask(option: str, question: str, default: str | None = None) -> str:
    if not _on_a_terminal():
        raise UsageError(f"{option} is missing", remedy="give it, or run the command on a terminal, where it asks")
    return str(typer.prompt(question, default=default))


def _lines(estimate: Estimate) -> list[str]:
    how = "by the planner's statistics, since counting takes too long" if estimate.estimated else "counted"
    rows = "an unknown number of" if estimate.rows is None else f"{estimate.rows:,}"
    lines = [f"database: {estimate.database}", f"rows to change: {rows} ({how})"]
    if estimate.rate and estimate.seconds is not None:
        took = timedelta(seconds=round(estimate.seconds))
        lines.append(
            f"time: {took} at {estimate.rate:,.0f} rows/s, as {estimate.tried} rows took that were updated and rolled"
            " back; commits, pauses and limits come on top"
        )
    else:
        lines.append("time: unknown, since no row could be tried")
    return [*lines, "plan of one batch:", *map(_of_plan, estimate.plan)]


def _of_plan(line: str) -> str:
    """Return a line of the plan with its indentation, without most of a long list of keys."""
    text = printable(line)
    indented = f"  {' ' * (len(line) - len(line.lstrip()))}{text}"
    return indented if len(indented) <= _PLAN_WIDTH else f"{indented[: _PLAN_WIDTH - 1]}…"
