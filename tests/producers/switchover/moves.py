"""Moves gitlab_main between two databases of one server, the second a copy of the first: without a standby.

They share one WAL, as a promoted copy shares it up to its promotion, so that producers see the same. test_steps.py
tests the switchover itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from consumers.testing.waiting import until
from infra.postgres.control import ensure_control_schema
from infra.settings.model import KafkaSettings, Settings
from infra.stack.postgresql.databases import DatabaseServer
from producers.source import slots
from tests.producers.sources import Source, database_section

TABLES = (
    "CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0); INSERT INTO t VALUES (1), (2);"
    "CREATE TABLE shared (id int PRIMARY KEY); INSERT INTO shared VALUES (1)"
)


class Moves:
    """The sources `first` and `second`; `first` owns gitlab_main at the start, and `second` does not exist yet."""

    def __init__(
        self,
        bootstrap_servers: str,
        prefix: str,
        server: DatabaseServer,
        *,
        tables: Sequence[str] = ("public.t",),
        names: Sequence[str] = ("first", "second"),
    ) -> None:
        self._server = server
        self._names = {name: f"{prefix}_{name}" for name in names}
        connection = psycopg.connect(server.create_database(self._names["first"]), autocommit=True)
        connection.execute(TABLES.encode())
        ensure_control_schema(connection, "first", ["gitlab_main"])
        mapped = {"public.t": "gitlab_main", "public.shared": "gitlab_shared"}
        self.settings = Settings(
            prefix=prefix,
            kafka=KafkaSettings(bootstrap_servers=bootstrap_servers, partitions=2),
            databases={
                name: database_section(server.dsn(database), *tables, table_schemas=mapped)
                for name, database in self._names.items()
            },
        )
        self.sources = {name: Source(self.settings, connection, name) for name in names}
        self.first, self.second = self.sources["first"], self.sources["second"]

    def close(self) -> None:
        for source in self.sources.values():
            source.connection.close()
        for database in self._names.values():
            self._server.drop_database(database)

    def copy(self, source: Source, to: Source) -> None:
        """Replace one database by a copy of the other, without its slots."""
        source.connection.close()
        to.connection.close()
        old, new = self._names[source.name], self._names[to.name]
        self._server.drop_database(new)

        def unused() -> bool:
            """Whether an ended producer's sessions are gone."""
            with self._server.connect() as connection:
                return connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", (old,)
                ).fetchone() == (0,)

        until(unused, "the database to be free")
        self._server.create_database(new, template=old)
        for each in (source, to):
            each.connection = psycopg.connect(self._server.dsn(self._names[each.name]), autocommit=True)

    def move(self, source: Source, to: Source) -> None:
        """Move gitlab_main as a switchover does; no producer runs."""
        give(source, to.name)
        self.copy(source, to)
        make_slot(to)
        open_as(to)


def write(source: Source, key: int) -> None:
    source.connection.execute("INSERT INTO t VALUES (%s)", (key,))


def give(source: Source, owner: str) -> None:
    """Close gitlab_main for its owner, as the first step of a switchover does, or as --abort does."""
    source.connection.execute(
        "UPDATE headrace.schema_ownership SET owner = %s, epoch = epoch + 1 WHERE gitlab_schema = 'gitlab_main'",
        (owner,),
    )


def make_slot(source: Source) -> None:
    slots.create(source.connection, source.slot, failover=True)


def open_as(source: Source) -> None:
    """Name the database, as the last step does."""
    source.connection.execute(
        "UPDATE headrace.database SET name = %s, opened_lsn = pg_current_wal_insert_lsn()", (source.name,)
    )
