"""A migration with its database, its topics and some rows that it should and should not change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg

from consumers.contract.migration import Migration
from consumers.operations.catalog import target_database
from consumers.runtime.assembly import consumer_of
from consumers.runtime.totals import Totals
from consumers.testing.case import Case
from consumers.testing.table_case import DATABASE
from infra.settings.model import Settings
from schemas.lazy_dataclass import dataclass


@dataclass(frozen=True)
class World:
    """See above; `connection` is in autocommit mode."""

    kind: type[Migration]
    settings: Settings
    connection: psycopg.Connection[Any]
    case: Case

    def run(self, kind: Callable[[], Migration] | None = None) -> Totals:
        """Run a consumer until it has caught up; `kind` makes another migration than the configured one."""
        migration = kind() if kind else self.configured()
        database = target_database(self.settings, self.kind)
        return consumer_of(self.settings, migration, database, stopping=threading.Event(), until_caught_up=True).run()

    def configured(self) -> Migration:
        """Return the migration with the options of the settings."""
        return self.kind.configure(self.settings.migration(self.kind.name))

    def remaining(self) -> int:
        """Return what the migration's own count says."""
        with self.connection.cursor() as cursor:
            return self.configured().remaining(cursor)


def world_of(
    kind: type[Migration],
    case: type[Case],
    bootstrap_servers: str,
    prefix: str,
    connection: psycopg.Connection[Any],
    dsn: str,
    directory: Path,
    options: Mapping[str, object] | None = None,
) -> World:
    """Return a new world in the empty database of `dsn`; `options` are the migration's section in the settings."""
    settings = Settings.model_validate(
        {
            "prefix": prefix,
            "kafka": {"bootstrap_servers": bootstrap_servers},
            "databases": {
                DATABASE: {
                    "dsn": dsn,
                    "gitlab_schemas": [kind.gitlab_schema],
                    "table_schemas": dict.fromkeys((*kind.tables, *kind.writes), kind.gitlab_schema),
                }
            },
            "migrations": {kind.name: dict(options or {})},
        }
    )
    settings = case.surroundings(settings, directory)
    return World(kind, settings, connection, case(settings, connection))
