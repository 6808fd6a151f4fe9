"""The servers on which rounds are played, and the rounds' databases."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from infra.stack import PostgresServer
from tests.fuzz.values import PRELUDE

OWNER: Final = "headrace_fuzz"
"""A role that owns every database and may replicate, but is no superuser."""
_PASSWORD: Final = "of-the-fuzz"


class Broken(AssertionError):
    """A promise that a round broke."""


@dataclass
class World:
    """Servers on which rounds are played, each in a separate database, also in parallel.

    `plant` names a fault that every producer has (see `planted`).
    """

    server: PostgresServer
    bootstrap_servers: str
    directory: Path
    patience: float = 120.0
    plant: str | None = None
    _templates: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def database(self, name: str, encoding: str) -> str:
        """Create a database of this encoding with everything that the tables need; return its dsn."""
        with self._lock:
            template = self._templates.get(encoding) or self._make_template(encoding)
        self._create(name, encoding, template)
        return self.server.dsn(name)

    def _make_template(self, encoding: str) -> str:
        if not self._templates:
            with self.server.connect() as connection, contextlib.suppress(psycopg.errors.DuplicateObject):
                connection.execute(f"CREATE ROLE {OWNER} LOGIN REPLICATION PASSWORD '{_PASSWORD}'".encode())
        template = self._templates[encoding] = f"fuzz_{encoding.lower()}_{time.monotonic_ns() % 10**9}"
        self._create(template, encoding, "template0")
        with psycopg.connect(self.server.dsn(template), autocommit=True, client_encoding="UTF8") as connection:
            connection.execute(f"SET ROLE {OWNER}".encode())
            connection.execute(PRELUDE.encode())
        return template

    def owners_dsn(self, dsn: str) -> str:
        """Return the owner's dsn of the same database."""
        return make_conninfo(dsn, user=OWNER, password=_PASSWORD)

    def close(self) -> None:
        """Drop everything that the rounds share."""
        for template in self._templates.values():
            self.server.drop_database(template)
        with self.server.connect() as connection, contextlib.suppress(psycopg.Error):
            connection.execute(f"DROP ROLE IF EXISTS {OWNER}".encode())

    def _create(self, name: str, encoding: str, template: str) -> None:
        with self.server.connect() as connection:
            provider = sql.SQL("LOCALE_PROVIDER libc" if connection.info.server_version >= 150_000 else "")
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C' {}").format(
                    sql.Identifier(name),
                    sql.Identifier(OWNER),
                    sql.Identifier(template),
                    sql.Literal(encoding),
                    provider,
                )
            )
