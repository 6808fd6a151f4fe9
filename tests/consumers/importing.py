"""A Praefect database with `missing_records` applied to it as the runtime does, but without Kafka."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import psycopg

from consumers.contract.decisions import Change
from consumers.contract.migration import Migration
from consumers.ledger.progress import Ledger
from consumers.migrations.missing_records import MissingRecords
from consumers.testing.waiting import until
from infra.postgres.control import ensure_control_schema
from infra.settings.model import MigrationSettings, Settings
from schemas.events import ChangeEvent, Op, Source
from schemas.positions import Lsn, Position
from tests.conftest import Database
from tests.consumers.praefect_database import SCHEMAS
from tests.producers.storages import hashed

HOUR_MS = 3_600_000


def section(primaries: dict[str, tuple[str, str]] | None = None, **options: object) -> MigrationSettings:
    """Return the migration's settings; `primaries` are virtual storage → primary and database."""
    virtual_storages = {
        name: {"database": database, "primary": primary, "storages": {primary: {"path": "storage"}}}
        for name, (primary, database) in (primaries or {}).items()
    }
    return Settings(
        virtual_storages=virtual_storages,  # type: ignore[arg-type]
        migrations={"missing_records": MigrationSettings.model_validate(options)},
    ).migration("missing_records")


def configured(primaries: dict[str, tuple[str, str]] | None = None, **options: object) -> Migration:
    return MissingRecords.configure(section(primaries, **options))


def event(walk_id: int = 1, *, age_ms: int = 0, now_ms: int = 0, **columns: object) -> ChangeEvent:
    """Return an event of a walk; its columns are those of a repository on the primary, unless given."""
    row: dict[str, object] = {
        "virtual_storage": "default",
        "storage": "gitaly-0",
        "relative_path": "a.git",
        "kind": "repository",
        "walk_id": walk_id,
        "is_primary": True,
        "modified_at": "2026-01-01",
        "repositories": None,
        "problems": None,
        "complete": None,
        "partitions": None,
    }
    seen = now_ms - age_ms
    source = Source(
        "default/gitaly-0", "praefect", "public", "storage_walk", Position(Lsn(walk_id), 0), None, seen, True
    )
    return ChangeEvent(Op.READ, source, seen, None, {**row, **columns})


def end(walk_id: int = 1, *, repositories: int, partition: int = 0, **columns: object) -> dict[str, Any]:
    """Return the columns of an end mark."""
    return {
        "walk_id": walk_id,
        "kind": "end",
        "relative_path": f"/{partition}",
        "modified_at": None,
        "repositories": repositories,
        "problems": 0,
        "complete": True,
        "partitions": 1,
        **columns,
    }


@dataclass
class World:
    """A Praefect database, with the migration applied to it as the runtime does, but without Kafka."""

    database: Database
    connection: psycopg.Connection[Any]
    """The tests' database."""
    member: psycopg.Connection[Any]
    migration: Migration = field(default_factory=configured)

    def apply(self, *rows: dict[str, Any], connection: psycopg.Connection[Any] | None = None) -> int:
        """Decide and apply events in one transaction; return how many rows changed."""
        used = connection or self.member
        now = used.execute("SELECT (extract(epoch FROM now()) * 1000)::bigint").fetchone()
        assert now is not None
        decided = [self.migration.decide(event(now_ms=now[0], **row)) for row in rows]
        changes = [decision for decision in decided if isinstance(decision, Change)]
        with used.transaction(), used.cursor() as cursor:
            return self.migration.apply(cursor, changes)

    def walk(self, paths: Sequence[str], walk_id: int = 1, **columns: Any) -> int:
        """Apply a whole walk of one partition."""
        found = [{"relative_path": path, "walk_id": walk_id, **columns} for path in paths]
        return self.apply(*found, {**end(walk_id, repositories=len(paths)), **columns})

    def remaining(self) -> int:
        with self.connection.cursor() as cursor:
            return self.migration.remaining(cursor)

    def given_up(self) -> list[tuple[str, str]]:
        with self.connection.cursor() as cursor:
            return [(name, reason) for name, reason, _ in self.migration.given_up(cursor)]


def member_of(database: Database, application: str = "headrace consume missing_records") -> psycopg.Connection[Any]:
    connection = database.connect()
    connection.execute("SELECT set_config('application_name', %s, false)", (application,))
    return connection


def made(database: Database, schema: str) -> World:
    connection = database.connect()
    connection.execute(SCHEMAS[schema])
    ensure_control_schema(connection, "praefect", ["praefect"])
    connection.execute(MissingRecords.own_tables)
    Ledger("missing_records", "praefect", "test").begin(connection)
    return World(database, connection, member_of(database))


def emptied(world: World) -> World:
    world.connection.execute(
        "TRUNCATE repositories, storage_repositories, virtual_storages, writes, headrace.walk_counts,"
        " headrace.walk_ends CASCADE"
    )
    world.connection.execute("UPDATE headrace.migrations SET run = 1")
    return World(world.database, world.connection, world.member)


def wait_for_a_lock(world: World) -> None:
    """Return when some connection waits for another's lock."""
    with closing(world.database.connect()) as watching:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        until(lambda: watching.execute(waiting).fetchone() != (0,), "a connection waits for a lock")


def paths(count: int, start: int = 0) -> list[str]:
    return [hashed(project) for project in range(start, start + count)]
