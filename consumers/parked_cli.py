"""The commands of parked events: list, retry, discard."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from consumers import catalog, display
from consumers.given_up import GivenUp, read_given_up, take_up
from consumers.migration import Migration
from consumers.parking import Entry, read_parked
from consumers.retries import chosen
from consumers.retries import discard as discard_entries
from consumers.retries import retry as retry_entries
from consumers.row_keys import RowKeys
from infra import log
from infra.options import Config, Json, Yes
from infra.settings import Settings, load_settings
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
    """Show a migration's parked events: which, why, and since when; and what it gave up outside of the database."""
    settings = load_settings(config)
    log.configure()
    kind = catalog.migration_class(migration)
    entries = read_parked(settings, migration)
    given_up = _given_up(settings, kind) if kind.own_tables else []
    row_keys = RowKeys(settings)
    keys = {entry.name: row_keys.columns(entry.key) for entry in entries}
    if as_json:
        described = [{**asdict(one), "since": one.since.isoformat()} for one in given_up]
        parked = [{**_described(entry), "key": keys[entry.name]} for entry in entries]
        print(json.dumps({"migration": migration, "parked": parked, "given_up": described}, default=str))
    else:
        display.show_parked(migration, entries, given_up, keys)


@app.command()
def retry(migration: MigrationName, events: EventNames = None, as_json: Json = False, config: Config = None) -> None:
    """Apply parked events after all, and try again what was given up: those named, or all of them.

    Each is decided and applied as at first, once, however often this is called or killed. What fails again stays
    parked, and the exit code is 1 then.
    """
    settings = load_settings(config)
    log.configure()
    kind = catalog.migration_class(migration)
    database = catalog.target_database(settings, kind)
    given_up = {one.name for one in _given_up(settings, kind)} if kind.own_tables else set()
    named = [name for name in events or [] if name not in given_up]
    with stop_on_signals() as stop:
        entries = chosen(settings, migration, named) if named or not events else []
        wanted = sorted(given_up & set(events) if events else given_up)
        taken = take_up(settings, kind.configure(settings.migration(migration)), database, wanted) if wanted else 0
        result = retry_entries(settings, kind.configure(settings.migration(migration)), database, entries, stop)
    if as_json:
        print(json.dumps({"migration": migration, **asdict(result), "taken_up": taken}))
    else:
        if taken:
            print(f"{migration}: {taken:,} are tried again by its members")
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


def _given_up(settings: Settings, kind: type[Migration]) -> list[GivenUp]:
    migration = kind.configure(settings.migration(kind.name))
    return read_given_up(settings, migration, catalog.target_database(settings, kind))


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
