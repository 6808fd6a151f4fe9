"""A database whose tables have the guard, for its tests."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import errors

from infra.guard import write_guard
from infra.postgres.advisory_locks import exclude, ownership_key
from infra.postgres.control import ensure_control_schema
from infra.settings.model import DatabaseSettings
from tests.conftest import Database

Connection = psycopg.Connection[Any]

SCHEMA = """
    CREATE TABLE public.stays (id int PRIMARY KEY);
    CREATE TABLE public.moves (id int PRIMARY KEY, stays int REFERENCES public.stays ON DELETE CASCADE, n int);
    CREATE TABLE public.parts (id int, n int, PRIMARY KEY (id, n)) PARTITION BY RANGE (id);
    CREATE TABLE public.part_1 PARTITION OF public.parts FOR VALUES FROM (0) TO (10) PARTITION BY LIST (n);
    CREATE TABLE public.part_1_1 PARTITION OF public.part_1 DEFAULT;
    INSERT INTO public.stays VALUES (1);
    INSERT INTO public.moves VALUES (1, 1, 0), (2, NULL, 0);
    INSERT INTO public.parts VALUES (1, 0);
    GRANT ALL ON ALL TABLES IN SCHEMA public TO application;
"""
LABELS = {"public.stays": "gitlab_main", "public.moves": "gitlab_ci", "public.parts": "gitlab_ci"}
OF_CI = ["public.moves", "public.part_1", "public.part_1_1", "public.parts"]
GIVE = "UPDATE headrace.schema_ownership SET owner = 'other', epoch = epoch + 1 WHERE gitlab_schema = 'gitlab_ci'"


def of_schemas(
    connection: Connection, gitlab_schemas: list[str], labels: dict[str, str], own: list[str] | None = None
) -> dict[str, str]:
    section = {"dsn": "host=h", "gitlab_schemas": own or gitlab_schemas, "table_schemas": labels}
    return write_guard.tables_of(connection, gitlab_schemas, "main", DatabaseSettings.model_validate(section), {})


class Guarded:
    """A database that owns gitlab_main and gitlab_ci, whose gitlab_ci tables have the guard."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.admin = database.connect()
        self.admin.execute(
            "DO $$ BEGIN CREATE ROLE application; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$"
        )
        self.admin.execute(SCHEMA.encode())
        ensure_control_schema(self.admin, "main", ["gitlab_main", "gitlab_ci"])
        self.install()

    def install(self, **options: Any) -> list[str]:
        tables = of_schemas(self.admin, ["gitlab_ci"], LABELS)
        return write_guard.install(self.admin, "gitlab_ci", list(tables), **options)

    def application(self, *, autocommit: bool = True) -> Connection:
        """Return a session of a role that has no right on schema headrace."""
        connection = self._database.connect()
        connection.execute("SET ROLE application")
        connection.autocommit = autocommit
        return connection

    def give_away(self) -> None:
        """Do what a switchover does to close gitlab_ci."""
        with self.admin.transaction():
            exclude(self.admin, [ownership_key("gitlab_ci")])
            self.admin.execute(GIVE)

    def rows(self) -> list[tuple[Any, ...]]:
        return self.admin.execute("SELECT id, n FROM public.moves ORDER BY 1").fetchall()


def refused(connection: Connection, statement: str) -> bool:
    try:
        connection.execute(statement.encode())
    except errors.ReadOnlySqlTransaction:
        return True
    return False
