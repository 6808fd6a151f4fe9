"""Carries out the releases of `headrace schema` that alter a table, and prints what it did."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg
import typer

from consumers.contract.backfill import Backfill
from consumers.operations import catalog
from consumers.operations.group_admin import MembersAlive, members
from consumers.schema.executor import Alterations, Done, RowsForbidThis
from consumers.schema.plan import Found, OutOfOrder, Release, refusal
from infra.postgres import connect
from infra.postgres.control import ensure_control_schema
from infra.service import log
from infra.service.signals import stop_on_signals
from infra.settings.file import load_settings
from infra.settings.model import Settings
from infra.state.history import Actor, operator
from schemas.errors import UsageError
from schemas.lazy_dataclass import dataclass
from schemas.topics import group_name


def expand(migration: str, config: Path | None, *, down: bool, yes: bool, reason: str | None, as_json: bool) -> None:
    """Run `headrace schema expand`."""
    with opened(migration, config, operator(reason)) as site:
        if down:
            _require_no_consumers(site)
            if not yes:
                typer.confirm(
                    f"Drop column {site.kind.column} of {site.kind.table} in {site.database}?", abort=True, err=True
                )
        _execute(site, Release.EXPAND_DOWN if down else Release.EXPAND, as_json)


def contract(migration: str, config: Path | None, *, down: bool, reason: str | None, as_json: bool) -> None:
    """Run `headrace schema contract`."""
    with opened(migration, config, operator(reason)) as site:
        if down:
            record(site, complete=False)
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
        record(site, complete=True)


@dataclass(frozen=True)
class Site:
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
def opened(name: str, config: Path | None, actor: Actor) -> Iterator[Site]:
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
        yield Site(settings, kind, database, connection, threading.Event(), actor)


def require(site: Site, release: Release) -> None:
    if refused := refusal(release, site.kind, site.found()):
        raise refused


def _require_no_consumers(site: Site) -> None:
    if alive := members(site.settings.kafka, group_name(site.settings.prefix, site.kind.name)):
        raise MembersAlive(f"{site.kind.name} has running consumers: {', '.join(alive)}")


def record(site: Site, *, complete: bool) -> None:
    """Record whether the migration is complete: it is only once rows without a value are forbidden."""
    site.connection.execute(
        "UPDATE headrace.migrations SET completed_at = CASE WHEN %s THEN coalesce(completed_at, now()) END"
        " WHERE name = %s",
        (complete, site.kind.name),
    )


def _execute(site: Site, release: Release, as_json: bool) -> None:
    """Execute a release and print its steps: each as it is done, or all in JSON at the end."""
    if as_json:
        done = _carry_out(site, release, lambda _done: None)
        print(json.dumps({**site.document(release), "done": [asdict(each) for each in done]}))
    elif not _carry_out(site, release, _say):
        print(f"{release} of {site.kind.name}: already up to date")


def _carry_out(site: Site, release: Release, say: Callable[[Done], object]) -> list[Done]:
    alterations = site.alterations(say)
    with stop_on_signals(site.stopping, overdue=alterations.cancel, cut=alterations.cut):
        return alterations.carry_out(release)


def _say(done: Done) -> None:
    print(f"{done.what} ({done.seconds:.1f} s, {done.tries} {'try' if done.tries == 1 else 'tries'})", flush=True)
