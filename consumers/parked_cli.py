"""The commands of parked events: list, retry, discard."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from consumers import catalog, display
from consumers.parking import Entry, read_parked
from consumers.retries import chosen
from consumers.retries import discard as discard_entries
from consumers.retries import retry as retry_entries
from infra import log
from infra.options import Config, Json, Yes
from infra.settings import load_settings
from infra.stopping import stop_on_signals
from schemas.errors import HeadraceError, Interrupted, UsageError

MigrationName = Annotated[str, typer.Argument(metavar="MIGRATION", help="The migration's name.", show_default=False)]
EventNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[EVENT]...", help="Events as the list names them: TOPIC/PARTITION/OFFSET."),
]

app = typer.Typer(
    help="Events that a migration could not apply: list them, retry them, discard them.", no_args_is_help=True
)


class StillParked(HeadraceError):
    """Remove the cause and retry again, or discard them."""


@app.command("list")
def list_parked(migration: MigrationName, as_json: Json = False, config: Config = None) -> None:
    """Show a migration's parked events: which, why, and since when."""
    settings = load_settings(config)
    log.configure()
    catalog.migration_class(migration)
    entries = read_parked(settings, migration)
    if as_json:
        print(json.dumps({"migration": migration, "parked": [_described(entry) for entry in entries]}))
    else:
        display.show_parked(migration, entries)


@app.command()
def retry(migration: MigrationName, events: EventNames = None, as_json: Json = False, config: Config = None) -> None:
    """Apply parked events after all: those named, or all of them.

    Each is decided and applied as at first, once, however often this is called or killed. What fails again stays
    parked, and the exit code is 1 then.
    """
    settings = load_settings(config)
    log.configure()
    kind = catalog.migration_class(migration)
    database = catalog.target_database(settings, kind)
    with stop_on_signals() as stop:
        entries = chosen(settings, migration, events or [])
        result = retry_entries(settings, kind.configure(settings.migration(migration)), database, entries, stop)
    if as_json:
        print(json.dumps({"migration": migration, **asdict(result)}))
    else:
        print(
            f"{migration}: {result.applied:,} applied, {result.unneeded:,} needed nothing, "
            f"{result.before:,} settled before, {len(result.stays):,} still parked"
        )
    if stop.is_set():
        raise Interrupted("the retry was stopped; what it did not reach is still parked")
    if result.stays:
        name, reason = next(iter(result.stays.items()))
        raise StillParked(f"{len(result.stays)} events of {migration} are still parked, among them {name}: {reason}")


@app.command()
def discard(
    migration: MigrationName,
    events: EventNames = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are parked.")] = False,
    yes: Yes = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Drop parked events for good, those named or --all: what they ask for is never done."""
    if bool(events) == everything:
        raise UsageError(
            "name the events to discard, or give --all", remedy=f"see them with `headrace parked list {migration}`"
        )
    settings = load_settings(config)
    log.configure()
    kind = catalog.migration_class(migration)
    database = catalog.target_database(settings, kind)
    entries = chosen(settings, migration, events or [])
    if entries and not yes:
        typer.confirm(f"Discard {len(entries)} parked events of {migration} for good?", abort=True, err=True)
    with stop_on_signals() as stop:
        result = discard_entries(settings, kind.configure(settings.migration(migration)), database, entries, stop)
    if as_json:
        print(json.dumps({"migration": migration, **asdict(result)}))
    else:
        print(f"{migration}: {result.discarded + result.before:,} discarded")
    if stop.is_set():
        raise Interrupted("the discarding was stopped; what it did not reach is still parked")


def _described(entry: Entry) -> dict[str, object]:
    return {
        "event": entry.name,
        "topic": entry.place.topic,
        "partition": entry.place.partition,
        "offset": entry.offset,
        "reason": entry.reason,
        "run": entry.run,
        "parked_at": entry.parked_at.isoformat(),
    }
