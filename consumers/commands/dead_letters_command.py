"""The dead-letters commands: list, retry, discard."""

from __future__ import annotations

import dataclasses
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.options import Config, Json, Reason, Yes
from schemas.errors import HeadraceError, Interrupted, UsageError

if TYPE_CHECKING:
    from consumers.contract.migration import Migration
    from consumers.dead_letters.given_up import GivenUp
    from consumers.delivery.dead_letter_topic import Entry
    from infra.settings.model import Settings

MigrationName = Annotated[str, typer.Argument(metavar="MIGRATION", help="The migration's name.", show_default=False)]
EventNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="[EVENT]...", help="Events as `list` prints them: DATABASE/TOPIC/PARTITION/OFFSET."),
]
Database = Annotated[
    str | None,
    typer.Option("--database", help="For a migration that runs once per database: which one.", show_default=False),
]

app = typer.Typer(
    help="""List, retry or discard a migration's dead letters.

        headrace dead-letters list skip_resets

    A dead letter is an event that the migration could not apply.
    """,
    no_args_is_help=True,
)


class StillDeadLetters(HeadraceError):
    """Remove the cause and retry, or discard them."""


@app.command("list")
def list_dead_letters(
    migration: MigrationName, database: Database = None, as_json: Json = False, config: Config = None
) -> None:
    """List a migration's dead letters with their reasons.

        headrace dead-letters list skip_resets

    Includes work outside the database that was given up. For a migration that runs once per database, lists those of
    all databases unless --database names one.
    """
    from consumers.dead_letters.row_keys import RowKeys
    from consumers.dead_letters.settle import read_dead_letters
    from consumers.operations import catalog
    from infra.service import log

    settings = _settings(config, migration, database)
    log.configure(settings.log)
    kind = catalog.migration_class(settings, migration)
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
        dead_letters = [{**_described(entry), "key": keys[entry.name]} for entry in entries]
        print(json.dumps({"migration": migration, "dead_letters": dead_letters, "given_up": described}, default=str))
    else:
        from consumers.commands import display

        display.show_dead_letters(migration, entries, given_up, keys)


@app.command()
def retry(
    migration: MigrationName,
    events: EventNames = None,
    database: Database = None,
    reason: Reason = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Retry dead letters: all of them, or those named.

        headrace dead-letters retry skip_resets

    Each is applied exactly once, even if the command is killed and run again. An event that fails again stays a dead
    letter, and the command exits with 1. Work that was given up is tried again by the consumers. Refused while another
    process retries or discards.
    """
    from consumers.dead_letters.given_up import take_up
    from consumers.dead_letters.settle import Settled
    from consumers.dead_letters.settle import retry as retry_entries
    from consumers.operations import catalog
    from infra.service import log
    from infra.service.signals import stop_on_signals
    from infra.state.history import operator

    actor = operator(reason)
    settings = _settings(config, migration, database)
    log.configure(settings.log)
    kind = catalog.migration_class(settings, migration)
    target = _one_database(settings, kind)
    given_up = {one.name for one in _given_up(settings, kind, target)}
    named = [name for name in events or [] if name not in given_up]
    made = kind.configure(settings.migration(migration))
    with stop_on_signals() as stop, _denials_named(settings, kind, target):
        wanted = sorted(given_up & set(events) if events else given_up)
        result = retry_entries(settings, made, target, named, stop, actor=actor) if named or not events else Settled()
        taken = take_up(settings, made, target, wanted, actor) if wanted else 0
    if as_json:
        print(json.dumps({"migration": migration, **dataclasses.asdict(result), "taken_up": taken}))
    else:
        if taken:
            print(f"{migration}: its consumers will try {taken:,} again")
        print(
            f"{migration}: {result.applied:,} applied, {result.unneeded:,} needed nothing, "
            f"{result.before:,} already settled, {len(result.stays):,} still dead letters"
        )
    if stop.is_set():
        raise Interrupted("the retry was stopped; the events that it did not reach are still dead letters")
    if result.stays:
        name, reason = next(iter(result.stays.items()))
        raise StillDeadLetters(
            f"{len(result.stays):,} of {migration}'s events still cannot be applied, such as {name}: {reason}"
        )


@app.command()
def discard(
    migration: MigrationName,
    events: EventNames = None,
    everything: Annotated[bool, typer.Option("--all", help="Discard all dead letters.")] = False,
    database: Database = None,
    reason: Reason = None,
    yes: Yes = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Discard dead letters for good: those named, or --all.

        headrace dead-letters discard skip_resets --all

    Discarded events are never applied.
    """
    if bool(events) == everything:
        raise UsageError(
            "name the events to discard, or give --all",
            remedy=f"list them with `headrace dead-letters list {migration}`",
        )
    from consumers.dead_letters.settle import chosen, read_dead_letters
    from consumers.dead_letters.settle import discard as discard_entries
    from consumers.operations import catalog
    from infra.service import log
    from infra.service.signals import stop_on_signals
    from infra.state.history import operator

    actor = operator(reason)
    settings = _settings(config, migration, database)
    log.configure(settings.log)
    kind = catalog.migration_class(settings, migration)
    target = _one_database(settings, kind)
    with _denials_named(settings, kind, target):
        entries = chosen(migration, read_dead_letters(settings, kind, target), events or [])
    if entries and not yes:
        typer.confirm(f"Discard {len(entries)} dead letters of {migration} for good?", abort=True, err=True)
    with stop_on_signals() as stop, _denials_named(settings, kind, target):
        made = kind.configure(settings.migration(migration))
        result = discard_entries(settings, made, target, entries, stop, actor=actor)
    if as_json:
        print(json.dumps({"migration": migration, **dataclasses.asdict(result)}))
    else:
        print(f"{migration}: {result.discarded + result.before:,} discarded")
    if stop.is_set():
        raise Interrupted("discard was stopped; the events that it did not reach are still dead letters")


def _denials_named(settings: Settings, kind: type[Migration], database: str) -> AbstractContextManager[None]:
    from consumers.operations import rights as consumer_rights
    from infra.rights import kafka_rights

    return kafka_rights.named(settings.kafka, lambda: consumer_rights.needed(settings, kind, database))


def _settings(config: Path | None, migration: str, database: str | None) -> Settings:
    """Return the settings, with `database` as the migration's if given."""
    from infra.settings.file import load_settings
    from infra.settings.model import MigrationSettings

    settings = load_settings(config)
    if database is None:
        return settings
    section = settings.migrations.get(migration, MigrationSettings()).model_copy(update={"database": database})
    return settings.model_copy(update={"migrations": {**settings.migrations, migration: section}})


def _databases(settings: Settings, kind: type[Migration]) -> list[str]:
    """Return the databases that the migration writes; raises as catalog.target_database."""
    from consumers.contract.migration import Shared
    from consumers.operations import catalog

    if kind.shared is Shared.PER_DATABASE and settings.migration(kind.name).database is None:
        return catalog.listing(settings, kind.gitlab_schema) or [catalog.target_database(settings, kind)]
    return [catalog.target_database(settings, kind)]


def _one_database(settings: Settings, kind: type[Migration]) -> str:
    names = _databases(settings, kind)
    if len(names) > 1:
        raise UsageError(
            f"{kind.name} runs once for each of the databases {', '.join(sorted(names))}",
            remedy="choose one with --database",
        )
    return names[0]


def _given_up(settings: Settings, kind: type[Migration], database: str) -> list[GivenUp]:
    from consumers.dead_letters.given_up import read_given_up

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
        "recorded_at": entry.recorded_at.isoformat(),
    }
