"""Operations on a PostgreSQL server of a stack over a connection, wherever it runs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

import psycopg
from psycopg import sql

SUPERUSER = "postgres"
RELEASE_SECONDS = 60.0


class DatabaseServer(ABC):
    """A server with a superuser's dsn."""

    @abstractmethod
    def dsn(self, database: str = "postgres") -> str:
        """Return the URL of one of its databases, for the superuser, with the password."""

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """Open an autocommit connection."""
        return psycopg.connect(self.dsn(database), autocommit=True, connect_timeout=10)

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, empty or as a copy of `template` (with no open sessions); return its dsn."""
        with self.connect() as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(template or "template1")
                )
            )
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Drop a database with its replication slots and open sessions, if it exists."""
        with self.connect() as connection:
            slots = sql.SQL("SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = {}")
            drop_slots(connection, slots.format(sql.Literal(name)))
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def drop_slots(connection: psycopg.Connection, query: sql.Composed) -> None:
    """Drop the replication slots that `query` finds (name, user's process id), ending their users."""
    deadline = time.monotonic() + RELEASE_SECONDS
    while slots := connection.execute(query).fetchall():
        for slot, user in slots:
            try:
                if user is not None:
                    connection.execute("SELECT pg_terminate_backend(%s, 5000)", [user])
                connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
            except psycopg.errors.ObjectInUse:  # its user reconnected, or has not released it yet
                if time.monotonic() > deadline:
                    raise
            except psycopg.errors.UndefinedObject:  # a temporary slot ended with its session
                pass
