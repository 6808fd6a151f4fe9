"""The two ends of a switchover: the database `first`, which owns everything, and its standby `second`."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import psycopg
import pytest
from psycopg import sql

from consumers.testing.waiting import until
from infra.postgres.control import Owner, database_name, ensure_control_schema, owners
from infra.settings.file import load_settings
from infra.settings.model import Settings
from producers.commands.switchover_command import status_report
from producers.switchover.endpoints import Move
from producers.switchover.rules import next_step
from producers.switchover.step_limit import StepLimit
from producers.switchover.steps import opened
from tests.consumers.container_repositories import write_settings
from tests.consumers.services import ROOT

MAIN = "gitlab_main"
CI = "gitlab_ci"
SHARED = "gitlab_shared"


on_the_oldest_too = pytest.mark.parametrize(
    "ends",
    [pytest.param("ends_server", id="embedded"), pytest.param("oldest_server", id="oldest", marks=pytest.mark.long)],
    indirect=True,
)
"""Marks a test that runs on the stack's PostgreSQL and on the oldest installed one."""


class Stopped(Exception):
    """Raised after the last step that a test wants."""


class EndsServer(Protocol):
    """The interface that switchover tests need from a server of any version."""

    @property
    def running(self) -> bool: ...
    def dsn(self, database: str = "postgres") -> str: ...
    def connect(self, database: str = "postgres") -> psycopg.Connection: ...
    def create_database(self, name: str, template: str | None = None) -> str: ...
    def drop_database(self, name: str) -> None: ...
    def start(self) -> None: ...
    def abandon(self) -> None: ...
    def standby(self, name: str) -> Self: ...
    def forget_standby(self, name: str) -> None: ...
    def promote(self) -> None: ...


class Ends:
    """Both servers, and the settings that name them; its connections are closed at the end.

    With `kafka`, the bootstrap servers, producers can run: each database captures public.projects.
    """

    def __init__(self, server: EndsServer, name: str, directory: Path, *, kafka: str | None = None) -> None:
        self.server = server
        self.name = name
        self._kafka = kafka
        self._servers: dict[str, EndsServer] = {}
        self._dsns: dict[str, str] = {}
        self.listed = [MAIN, CI, SHARED]
        self.first_dsn = server.create_database(name)
        self.first = psycopg.connect(self.first_dsn, autocommit=True)
        ensure_control_schema(self.first, "first", [MAIN, CI, SHARED])
        self.first.execute("CREATE TABLE public.projects (id int PRIMARY KEY)")
        self._standby_name = name
        self.standby = self.make_standby(name)
        self.second_dsn = self.standby.dsn(name)
        self.second = psycopg.connect(self.second_dsn, autocommit=True)
        self.config = directory / "headrace.toml"
        self.settings: Settings
        self._dsns = {"first": self.first_dsn, "second": self.second_dsn, "third": self.second_dsn}
        self.lead("first", self.first_dsn)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.first.close()
        self.second.close()
        for server in self._servers.values():
            server.abandon()
        if self.server.running:
            for name in self._servers:
                self.server.forget_standby(name)
            self.server.drop_database(self.name)

    def make_standby(self, name: str) -> EndsServer:
        self._servers[name] = made = self.server.standby(name)
        return made

    def standby_of(self, database: str, name: str) -> EndsServer:
        """Create a standby of one of the servers, removed at the end."""
        origin = self.server if database == "first" else self.server_of(database)
        self._servers[f"{self.name}_{name}"] = made = origin.standby(f"{self.name}_{name}")
        return made

    def forget_second(self) -> None:
        """Stop retaining WAL for the copy on the old database's server, as after a move."""
        self.server.forget_standby(self._standby_name)

    def new_second(self) -> None:
        """Discard the copy and rebuild it as a standby, under the same name in the settings."""
        self.second.close()
        self.standby.abandon()
        self.forget_second()
        self._standby_name = f"{self.name}_anew"
        self.standby = self.make_standby(self._standby_name)
        self.second_dsn = self.standby.dsn(self.name)
        self.second = psycopg.connect(self.second_dsn, autocommit=True)
        self.lead("second", self.second_dsn)

    def server_of(self, name: str) -> EndsServer:
        return self.standby if name == "second" else self._servers[f"{self.name}_{name}"]

    @contextlib.contextmanager
    def other_standby(self, name: str) -> Iterator[str]:
        """Yield the dsn of another standby of `first`, with its own slot."""
        made = self.make_standby(f"{self.name}_{name}")
        try:
            yield made.dsn(self.name)
        finally:
            made.abandon()

    def stop_receiving(self, name: str) -> None:
        """Disconnect a standby from `first`'s WAL; it may still be promoted."""
        with self.server_of(name).connect() as connection:
            connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            connection.execute("SELECT pg_reload_conf()")
            until(
                lambda: connection.execute("SELECT count(*) FROM pg_stat_wal_receiver").fetchone() == (0,),
                f"{name} receives nothing more",
            )

    def lead(self, database: str, dsn: str) -> None:
        """Point a database's dsn in the settings at another server."""
        self._dsns[database] = dsn
        listed = {"gitlab_schemas": self.listed}
        databases: dict[str, Any] = {each: {"dsn": where, **listed} for each, where in self._dsns.items()}
        for each in databases if self._kafka else databases.keys() - {"first"}:
            databases[each]["tables"] = ["public.projects"]
        sections = {"kafka": {"bootstrap_servers": self._kafka, "partitions": 2}} if self._kafka else {}
        self.settings = load_settings(
            write_settings(self.config, {"prefix": self.name, "databases": databases, **sections})
        )

    @contextlib.contextmanager
    def setting(self, name: str, value: str) -> Iterator[None]:
        """Change a setting of the old database's server until the end; the server is shared."""
        named = sql.Identifier(name)
        self.first.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(named, sql.Literal(value)))
        self.first.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            self.first.execute(sql.SQL("ALTER SYSTEM RESET {}").format(named))
            self.first.execute("SELECT pg_reload_conf()")

    def states(self, *gitlab_schemas: str, source: str = "first", to: str = "second") -> list[str]:
        """Return what --status shows: the state of the ends, then of each gitlab schema."""
        with opened(self.settings, Move(gitlab_schemas or (MAIN,), source, to)) as moving:
            report = status_report(moving.look())
        return [report["ends"], *(each["state"] for each in report["states"])]

    def follow(self, title: str, connection: psycopg.Connection[Any], gitlab_schema: str = CI) -> None:
        """Run the guide's statements below `title`, with these tests' names."""
        text = (ROOT / "docs" / "how-to" / "switchover.md").read_text()
        found = re.findall(rf"<!-- sql: {title} -->\n```sql\n(.*?)```", text, re.DOTALL)
        assert found
        names = {
            "'main'": "'first'",
            "'ci'": "'second'",
            "'gitlab_ci'": f"'{gitlab_schema}'",
            "'headrace_ci'": f"'{self.slot}'",
        }
        for statement in found:
            connection.execute(re.sub("|".join(names), lambda each: names[each[0]], statement).encode())

    @property
    def slot(self) -> str:
        return f"{self.name}_second"

    def command(self, *gitlab_schemas: str, options: tuple[str, ...] = ()) -> list[str]:
        ends = ("--from", "first", "--to", "second", "--yes", "--config", str(self.config))
        return [sys.executable, "-m", "headrace", "switchover", *gitlab_schemas, *ends, *options]

    def owners_of(self, gitlab_schema: str) -> tuple[Owner, Owner]:
        return owners(self.first)[gitlab_schema], owners(self.second)[gitlab_schema]

    def owner_by(self, database: str, gitlab_schema: str) -> str:
        """Return the owner of a gitlab schema, as recorded on the server that the settings name."""
        with psycopg.connect(self._dsns[database]) as connection:
            return owners(connection)[gitlab_schema].name

    def open_on(self, gitlab_schema: str) -> list[str]:
        """Return the databases that own it according to the fence."""
        return [
            name
            for name, connection in (("first", self.first), ("second", self.second))
            if name == database_name(connection) == owners(connection)[gitlab_schema].name
            and connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        ]

    def run(
        self, *gitlab_schemas: str, source: str = "first", to: str = "second", seconds: float = 60.0, **options: Any
    ) -> bool:
        """Run the switchover; return whether it is complete."""
        move = Move(gitlab_schemas or (MAIN,), source, to)
        with opened(self.settings, move, StepLimit(seconds), **options) as moving:
            return next_step(moving.run()) is None

    def run_to(self, step: str, *gitlab_schemas: str) -> None:
        """Run the switchover up to the end of a step."""

        def stop(done: str) -> None:
            if done == step:
                raise Stopped

        with (
            contextlib.suppress(Stopped),
            opened(self.settings, Move(gitlab_schemas or (MAIN,), "first", "second")) as moving,
        ):
            moving.run(after=stop)

    def abort(self, *gitlab_schemas: str, source: str = "first", to: str = "second", seconds: float = 60.0) -> None:
        move = Move(gitlab_schemas or (MAIN,), source, to)
        with opened(self.settings, move, StepLimit(seconds)) as moving:
            moving.abort()
