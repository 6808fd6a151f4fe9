"""A database and its physical standby, which becomes another database of the settings by a switchover."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from infra.postgres.control import ensure_control_schema
from infra.settings.model import KafkaSettings, Settings
from infra.stack.postgresql.server import EmbeddedPostgres
from producers.source import slots
from producers.switchover.endpoints import Move
from producers.switchover.rules import next_step
from producers.switchover.steps import opened
from tests.producers.sources import Source, database_section

MOVE = Move(("gitlab_main",), "first", "second")


class Pair:
    """The database `first` with its standby, which becomes `second`."""

    def __init__(self, server: EmbeddedPostgres, bootstrap_servers: str, name: str) -> None:
        self.name = name
        dsn = server.create_database(name)
        connection = psycopg.connect(dsn, autocommit=True)
        connection.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
        ensure_control_schema(connection, "first", ["gitlab_main"])
        self.standby = server.standby(name)
        second = self.standby.dsn(name)
        self.settings = Settings(
            prefix=name,
            kafka=KafkaSettings(bootstrap_servers=bootstrap_servers, partitions=2),
            databases={
                "first": database_section(dsn, "public.t"),
                "second": database_section(second, "public.t"),
            },
        )
        self.first = Source(self.settings, connection, "first")
        self.second = Source(self.settings, psycopg.connect(second, autocommit=True), "second")

    def switch(self) -> None:
        with opened(self.settings, MOVE) as moving:
            assert next_step(moving.run()) is None

    def close(self) -> None:
        self.first.connection.close()
        self.second.connection.close()
        self.standby.abandon()


@contextmanager
def paired(server: EmbeddedPostgres, bootstrap_servers: str, name: str) -> Iterator[Pair]:
    """A pair on `server`; at the end its database is removed, and the server waits for no standby."""
    made = Pair(server, bootstrap_servers, name)
    try:
        yield made
    finally:
        made.close()
        server.forget_standby(name)
        server.drop_database(name)


def kept(source: Source, standby: EmbeddedPostgres) -> bool:
    """Whether the standby has the source's slot persistently; helps it, as a longer run does by itself."""
    source.connection.execute("SELECT pg_log_standby_snapshot()")
    with standby.connect() as connection:
        state = slots.read(connection, source.slot)
    return state is not None and state.synced and not state.temporary
