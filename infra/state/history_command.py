"""The command `headrace history`."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from infra.cli.options import Config, Json
from infra.service import log
from infra.state.history_text import described, together
from schemas.errors import UsageError, printable

if TYPE_CHECKING:
    from infra.state.history import HistoryEntry

_AGO: Final = re.compile(r"(?P<count>\d{1,5})(?P<unit>[smhd])").fullmatch
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def history(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Only of this migration, source, table or schema.", show_default=False),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="WHEN", help="Such as 7d, 12h or 2026-01-31T12:00:00Z.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="At most so many, the newest.", min=1, max=100_000)] = 100,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Show what operators did, and why.

        headrace history skip_resets --since 7d

    Each pause, resume, pace, replay, retry, discard, repair, snapshot, switchover, guard, schema release and cleanup is
    recorded in the transaction that does it, in the database that it concerns; all databases are asked, and the newest
    is last. What was refused is not recorded.
    """
    from infra.settings.file import load_settings
    from infra.state.history import whole_history

    begin = None if since is None else _moment(since, datetime.now(UTC))
    settings = load_settings(config)
    log.configure(settings.log)
    found = whole_history(settings, subjects=[name] if name else [], since=begin, limit=limit)
    for database, problem in found.missing.items():
        print(f"without database {database}: {printable(problem)}", file=sys.stderr)
    if as_json:
        missing = [{"database": database, "problem": problem} for database, problem in found.missing.items()]
        entries = [entry.document() for entry in found.entries]
        print(json.dumps({"entries": entries, "missing": missing}))
    elif found.entries:
        print("\n".join(lines(found.entries, shutil.get_terminal_size().columns)))
    else:
        print("nothing is recorded" + (f" of {printable(name)}" if name else ""))


def lines(entries: Sequence[HistoryEntry], width: int) -> Iterator[str]:
    """Yield the lines of entries: what and when, then by whom and why; those of one command on one subject together."""
    for same in together(entries):
        last = same[-1]
        details = f" ({text})" if (text := described(same)) else ""
        what = f"{last.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z {last.action} {last.subject}{details}"
        yield from _folded(what, width, "")
        via = "" if last.via == "command" else f", {last.via}"
        yield from _folded(f"{last.actor} (role {last.role} in {last.database}{via})", width, "  ")
        if last.reason:
            yield from _folded(f"why: {last.reason}", width, "  ")


def _folded(text: str, width: int, indent: str) -> list[str]:
    # Names stay whole, to be copied.
    return textwrap.wrap(
        printable(text),
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _moment(text: str, now: datetime) -> datetime:
    """Return the moment that `--since` gives: an age such as 7d, or a date or time, in UTC without a zone."""
    if ago := _AGO(text):
        return now - timedelta(**{_UNITS[ago["unit"]]: int(ago["count"])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--since {text} is no time", remedy="give 7d, 12h, 30m or 2026-01-31T12:00:00Z") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
