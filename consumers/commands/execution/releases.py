"""Carries out a backfill's releases for `headrace schema`, and prints what it did."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
import typer

from consumers.commands.execution import process_tuning
from consumers.commands.execution.progress_bar import progress
from consumers.contract.backfill import Backfill
from consumers.operations import catalog, migration_sections, pauses
from consumers.operations.group_admin import members
from consumers.operations.replay import MembersAlive, replay
from consumers.runtime.assembly import consumer_of
from consumers.runtime.completion import RowsLeft
from consumers.schema.executor import Alterations, Done, RowsForbidThis
from consumers.schema.plan import Found, OutOfOrder, Release, refusal
from infra.postgres import connect
from infra.postgres.control import ensure_control_schema
from infra.service import log
from infra.service.signals import stop_on_signals
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.state.history import Actor, operator
from schemas.errors import Interrupted, Refused, UsageError
from schemas.topics import group_name


def expand(migration: str, config: Path | None, *, down: bool, yes: bool, reason: str | None, as_json: bool) -> None:
    """Run `headrace schema expand`."""
    with _opened(migration, config, operator(reason)) as site:
        if down:
            _require_no_consumers(site)
            if not yes:
                typer.confirm(
                    f"Drop column {site.kind.column} of {site.kind.table} in {site.database}?", abort=True, err=True
                )
        _execute(site, Release.EXPAND_DOWN if down else Release.EXPAND, as_json)


def backfill(migration: str, config: Path | None, *, down: bool, reason: str | None, as_json: bool) -> None:
    """Run `headrace schema backfill`."""
    if reason is not None and not down:
        raise UsageError("--reason needs --down", remedy="a backfill is recorded by its progress: omit it")
    with _opened(migration, config, operator(reason)) as site:
        if down:
            _withdraw(site, as_json)
            return
        migration_sections.require_spelt(site.settings, migration)
        _require(site, Release.BACKFILL)
        if not site.settings.migration(migration).enabled:
            raise Refused(f"{migration} is disabled", remedy="enable it in its settings or environment")
        if pauses.is_paused(site.settings, site.kind, site.database):
            raise Refused(f"{migration} is paused", remedy=f"resume it with `headrace resume {migration}`")
        _record(site, complete=False)
        with progress(migration, site.settings, site.kind, site.database) as report:
            member = consumer_of(
                site.settings,
                _until_complete(site.kind).configure(site.settings.migration(migration)),
                site.database,
                stopping=site.stopping,
                until_complete=True,
                report=report,
            )
            process_tuning.tune()
            try:
                with stop_on_signals(site.stopping, overdue=member.cancel, cut=member.cut):
                    totals = member.run()
            except RowsLeft as error:
                raise RowsLeft(
                    error.problem,
                    remedy=f"if an application still writes such rows, keep `headrace consume {migration}` running;"
                    f" else see `headrace dead-letters list {migration}`, or `headrace snapshot {site.kind.table}`",
                ) from None
        if site.stopping.is_set():
            raise Interrupted(f"{migration} is not complete yet")
        _record(site, complete=False)
        if as_json:
            print(json.dumps({**site.document(Release.BACKFILL), **asdict(totals)}))
        else:
            print(f"every row of {site.kind.table} has a {site.kind.column}; {totals.applied:,} were filled")


def contract(migration: str, config: Path | None, *, down: bool, reason: str | None, as_json: bool) -> None:
    """Run `headrace schema contract`."""
    with _opened(migration, config, operator(reason)) as site:
        if down:
            _record(site, complete=False)
            _execute(site, Release.CONTRACT_DOWN, as_json)
            return
        try:
            _execute(site, Release.CONTRACT, as_json)
        except RowsForbidThis as error:
            _carry_out(site, Release.CONTRACT_DOWN, lambda _done: None)
            raise OutOfOrder(
                f"{error.problem}: they were written while it was added, so it was dropped",
                remedy=f"deploy the application that writes {site.kind.column} everywhere,"
                f" run `headrace schema backfill {migration}`, then `headrace schema contract {migration}` again",
            ) from None
        _record(site, complete=True)


@dataclass(frozen=True, slots=True)
class _Site:
    """A backfill with the database that it alters."""

    settings: Settings
    kind: type[Backfill]
    database: str
    connection: psycopg.Connection[Any]
    stopping: threading.Event
    actor: Actor

    def alterations(self, say: Callable[[Done], object]) -> Alterations:
        migration = self.kind.configure(self.settings.migration(self.kind.name))
        assert isinstance(migration, Backfill)
        return Alterations(self.connection, migration, self.database, stopping=self.stopping, say=say, actor=self.actor)

    def found(self) -> Found:
        return self.alterations(lambda _done: None).found()

    def document(self, release: Release) -> dict[str, object]:
        return {"migration": self.kind.name, "database": self.database, "table": self.kind.table, "release": release}


@contextlib.contextmanager
def _opened(name: str, config: Path | None, actor: Actor) -> Iterator[_Site]:
    """Connect the backfill to its database, and create headrace's own tables there."""
    settings = load_settings(config)
    kind = catalog.migration_class(settings, name)
    if not issubclass(kind, Backfill):
        there = ", ".join(
            sorted(name for name, each in catalog.migrations(settings).items() if issubclass(each, Backfill))
        )
        raise UsageError(f"{name} is not a backfill", remedy=f"backfills: {there or 'none'}")
    log.configure(settings.log)
    database = catalog.target_database(settings, kind)
    section = settings.database(database)
    with connect.session(section, name=f"schema {name}") as connection:
        ensure_control_schema(connection, database, section.gitlab_schemas, prefix=settings.prefix)
        yield _Site(settings, kind, database, connection, threading.Event(), actor)


def _require(site: _Site, release: Release) -> None:
    if refused := refusal(release, site.kind, site.found()):
        raise refused


def _require_no_consumers(site: _Site) -> None:
    if alive := members(site.settings.kafka, group_name(site.settings.prefix, site.kind.name)):
        raise MembersAlive(f"{site.kind.name} has running consumers: {', '.join(alive)}")


def _record(site: _Site, *, complete: bool) -> None:
    """Record whether the migration is complete: it is only once rows without a value are forbidden."""
    site.connection.execute(
        "UPDATE headrace.migrations SET completed_at = CASE WHEN %s THEN coalesce(completed_at, now()) END"
        " WHERE name = %s",
        (complete, site.kind.name),
    )


def _withdraw(site: _Site, as_json: bool) -> None:
    _require(site, Release.BACKFILL_DOWN)
    begun = site.found().begun
    run = (
        replay(site.settings, site.kind, site.database, reason="backfill --down", actor=site.actor).run
        if begun
        else None
    )
    if as_json:
        print(json.dumps({**site.document(Release.BACKFILL_DOWN), "run": run}))
    elif begun:
        print(f"the next backfill of {site.kind.table} is run {run} and reads all events again; the values stay")
    else:
        print(f"nothing to undo: no run of {site.kind.name} has read events")


def _execute(site: _Site, release: Release, as_json: bool) -> None:
    """Execute a release and print its steps: each as it is done, or all in JSON at the end."""
    if as_json:
        done = _carry_out(site, release, lambda _done: None)
        print(json.dumps({**site.document(release), "done": [asdict(each) for each in done]}))
    elif not _carry_out(site, release, _say):
        print(f"{release} of {site.kind.name}: already up to date")


def _carry_out(site: _Site, release: Release, say: Callable[[Done], object]) -> list[Done]:
    alterations = site.alterations(say)
    with stop_on_signals(site.stopping, overdue=alterations.cancel, cut=alterations.cut):
        return alterations.carry_out(release)


def _say(done: Done) -> None:
    print(f"{done.what} ({done.seconds:.1f} s, {done.tries} {'try' if done.tries == 1 else 'tries'})", flush=True)


def _until_complete(kind: type[Backfill]) -> type[Backfill]:
    """Return the backfill as a migration that is complete once every row has a value."""

    class UntilComplete(kind):  # type: ignore[valid-type, misc]
        continuous = False

    return UntilComplete
