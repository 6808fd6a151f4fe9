"""The commands of parked events: list, retry, discard."""

from __future__ import annotations

import dataclasses
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from consumers.commands import display
from consumers.contract.migration import Migration, Shared
from consumers.dead_letters.given_up import GivenUp, read_given_up, take_up
from consumers.dead_letters.row_keys import RowKeys
from consumers.dead_letters.settle import Settled, chosen, read_dead_letters
from consumers.dead_letters.settle import discard as discard_entries
from consumers.dead_letters.settle import retry as retry_entries
from consumers.delivery.dead_letter_topic import Entry
from consumers.operations import catalog
from consumers.operations import rights as consumer_rights
from infra.cli.options import Config, Json, Yes
from infra.rights import kafka_rights
from infra.service import log
from infra.service.signals import stop_on_signals
from infra.settings.file import load_settings
from infra.settings.model import MigrationSettings, Settings
from schemas.errors import HeadraceError, Interrupted, UsageError

MigrationName = Annotated[str, typer.Argument(metavar="MIGRATION", help="The migration's name.", show_default=False)]
EventNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[EVENT]...", help="Events as the list names them: DATABASE/TOPIC/PARTITION/OFFSET."),
]
Database = Annotated[
    str | None,
    typer.Option("--database", help="Of a migration that runs once for each database: which.", show_default=False),
]

app = typer.Typer(
    help="Events that a migration could not apply: list them, retry them, discard them.", no_args_is_help=True
)


class StillParked(HeadraceError):
    """Remove the cause and retry again, or discard them."""


@app.command("list")
def list_parked(
    migration: MigrationName, database: Database = None, as_json: Json = False, config: Config = None
) -> None:
    """Show a migration's parked events: which, why, and since when; and what it gave up outside of the database.

    Of a migration that runs once for each database, those of all of them, unless one is chosen.
    """
    log.configure()
    kind = catalog.migration_class(migration)
    settings = _settings(config, migration, database)
    entries: list[Entry] = []
    given_up: list[GivenUp] = []
    for name in _databases(settings, kind):
        with _denials_named(settings, kind, name):
            entries += read_dead_letters(settings, kind, name)
        given_up += _given_up(settings, kind, name)
    row_keys = RowKeys(settings)
    keys = {entry.name: row_keys.columns(entry.key) for entry in entries}
    if as_json:
        described = [{**dataclasses.asdict(one), "since": one.since.isoformat()} for one in given_up]
        parked = [{**_described(entry), "key": keys[entry.name]} for entry in entries]
        print(json.dumps({"migration": migration, "parked": parked, "given_up": described}, default=str))
    else:
        display.show_parked(migration, entries, given_up, keys)


@app.command()
def retry(
    migration: MigrationName,
    events: EventNames = None,
    database: Database = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Apply parked events after all, and try again what was given up: those named, or all of them.

    Each is decided and applied as at first, once, however often this is called or killed. What fails again stays
    parked, and the exit code is 1 then. While another process retries or discards, it is refused.
    """
    log.configure()
    kind = catalog.migration_class(migration)
    settings = _settings(config, migration, database)
    target = _one_database(settings, kind)
    given_up = {one.name for one in _given_up(settings, kind, target)}
    named = [name for name in events or [] if name not in given_up]
    made = kind.configure(settings.migration(migration))
    with stop_on_signals() as stop, _denials_named(settings, kind, target):
        wanted = sorted(given_up & set(events) if events else given_up)
        result = retry_entries(settings, made, target, named, stop) if named or not events else Settled()
        taken = take_up(settings, made, target, wanted) if wanted else 0
    if as_json:
        print(json.dumps({"migration": migration, **dataclasses.asdict(result), "taken_up": taken}))
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
    database: Database = None,
    yes: Yes = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Drop parked events for good, those named or --all: what they ask for is never done."""
    if bool(events) == everything:
        raise UsageError(
            "name the events to discard, or give --all", remedy=f"see them with `headrace parked list {migration}`"
        )
    log.configure()
    kind = catalog.migration_class(migration)
    settings = _settings(config, migration, database)
    target = _one_database(settings, kind)
    with _denials_named(settings, kind, target):
        entries = chosen(migration, read_dead_letters(settings, kind, target), events or [])
    if entries and not yes:
        typer.confirm(f"Discard {len(entries)} parked events of {migration} for good?", abort=True, err=True)
    with stop_on_signals() as stop, _denials_named(settings, kind, target):
        result = discard_entries(settings, kind.configure(settings.migration(migration)), target, entries, stop)
    if as_json:
        print(json.dumps({"migration": migration, **dataclasses.asdict(result)}))
    else:
        print(f"{migration}: {result.discarded + result.before:,} discarded")
    if stop.is_set():
        raise Interrupted("the discarding was stopped; what it did not reach is still parked")


def _denials_named(settings: Settings, kind: type[Migration], database: str) -> AbstractContextManager[None]:
    return kafka_rights.named(settings.kafka, lambda: consumer_rights.needed(settings, kind, database))


def _settings(config: Path | None, migration: str, database: str | None) -> Settings:
    """Return the settings, with `database` as the migration's where it is given."""
    settings = load_settings(config)
    if database is None:
        return settings
    section = settings.migrations.get(migration, MigrationSettings()).model_copy(update={"database": database})
    return settings.model_copy(update={"migrations": {**settings.migrations, migration: section}})


def _databases(settings: Settings, kind: type[Migration]) -> list[str]:
    """Return the database that the migration writes, or each that it runs for; raises as catalog.target_database."""
    if kind.shared is Shared.PER_DATABASE and settings.migration(kind.name).database is None:
        return catalog.listing(settings, kind.gitlab_schema) or [catalog.target_database(settings, kind)]
    return [catalog.target_database(settings, kind)]


def _one_database(settings: Settings, kind: type[Migration]) -> str:
    names = _databases(settings, kind)
    if len(names) > 1:
        raise UsageError(
            f"{kind.name} runs once for each of the databases {', '.join(sorted(names))}",
            remedy="say with --database whose parked events are meant",
        )
    return names[0]


def _given_up(settings: Settings, kind: type[Migration], database: str) -> list[GivenUp]:
    return read_given_up(settings, kind.configure(settings.migration(kind.name)), database) if kind.own_tables else []


def _described(entry: Entry) -> dict[str, object]:
    return {
        "event": entry.name,
        "database": entry.database,
        "topic": entry.place.topic,
        "partition": entry.place.partition,
        "offset": entry.offset,
        "reason": entry.reason,
        "run": entry.run,
        "parked_at": entry.parked_at.isoformat(),
    }
