"""The servers, files and variables that the commands of a page find: one function for each kind of page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from consumers.gitserver.tables import OWN_TABLES
from consumers.routing.placement import md5_home
from infra.demo.gitlab import build
from infra.demo.sample_database import TABLES
from infra.postgres.control import ensure_control_schema
from infra.settings.file import load_settings
from tests.administering import whole_script
from tests.conftest import Database
from tests.consumers.container_repositories import write_settings
from tests.consumers.gitserver.driver import NAMES
from tests.consumers.gitservers import Disks, add_rows, make_repository, make_tables
from tests.consumers.praefect_database import SCHEMAS
from tests.producers.servers import own_server
from tests.producers.storages import hashed, marked, repository

_ROWS: Final = 2_000


@dataclass(frozen=True)
class Place:
    """Where a page's commands run: a directory of its own, a prefix for topics, Kafka, and an empty database."""

    directory: Path
    prefix: str
    kafka: str
    database: Database

    def write(self, databases: Mapping[str, Any], **sections: Any) -> None:
        """Write headrace.toml."""
        kafka = {"bootstrap_servers": self.kafka}
        write_settings(
            self.directory / "headrace.toml",
            {"prefix": self.prefix, "kafka": kafka, "databases": databases, **sections},
        )


@dataclass(frozen=True)
class World:
    """What the commands find: variables of the environment, and the dsn of an administrator, for SQL."""

    environment: Mapping[str, str]
    dsn: str


@contextmanager
def nothing(place: Place) -> Iterator[World]:
    """Yield an empty directory: the page starts its own servers."""
    yield World({}, place.database.dsn)


@contextmanager
def servers(place: Place) -> Iterator[World]:
    """Yield the sample's tables, and the servers' addresses in the environment: the page writes the settings."""
    _fill(place.database.dsn)
    addresses = {
        "HEADRACE_PREFIX": place.prefix,
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": place.kafka,
        "HEADRACE_DATABASES__MAIN__DSN": place.database.dsn,
    }
    yield World(addresses, place.database.dsn)


@contextmanager
def sample(place: Place) -> Iterator[World]:
    """Yield the sample's tables and public.users, and settings that capture them."""
    _fill(place.database.dsn)
    with psycopg.connect(place.database.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.users (id bigint PRIMARY KEY, email text)")
        connection.execute("INSERT INTO public.users SELECT i, 'User' || i FROM generate_series(1, 100) i")
    place.write({"main": _captured(place.database.dsn)})
    yield World({}, place.database.dsn)


@contextmanager
def role(place: Place) -> Iterator[World]:
    """Yield the sample with a role `headrace` that has the rights of `headrace init --sql`, and its usual slot."""
    _fill(place.database.dsn)
    with psycopg.connect(place.database.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.users (id bigint PRIMARY KEY, email text)")
        connection.execute("CREATE ROLE headrace LOGIN PASSWORD 'sesame'")
        try:
            dsn = make_conninfo(place.database.dsn, user="headrace", password="sesame")
            place.write({"main": {**_captured(dsn), "slot": "headrace_main"}})
            script = whole_script(load_settings(place.directory / "headrace.toml"))
            connection.execute(script.partition("-- Kafka")[0].encode())
            yield World({}, place.database.dsn)
        finally:
            if connection.execute("SELECT FROM pg_roles WHERE rolname = 'headrace'").rowcount:
                connection.execute("DROP OWNED BY headrace; DROP ROLE headrace")


@contextmanager
def gitservers(place: Place) -> Iterator[World]:
    """Yield three gitservers with repositories to move, and the application's database."""
    disks = Disks(place.directory / "disks")
    for name in NAMES[:3]:
        make_repository(disks.old(name))
    with place.database.connect() as connection:
        make_tables(connection)
        add_rows(connection, {name: md5_home(name, disks.nodes) for name in NAMES[:3]})
        ensure_control_schema(connection, "gitserver", ["gitserver"], OWN_TABLES)
    tables = ["public.repo", "public.gitserver_repos"]
    place.write(
        {"gitserver": {"dsn": place.database.dsn, "gitlab_schemas": ["gitserver"], "tables": tables}},
        gitserver=disks.settings(),
    )
    yield World({}, place.database.dsn)


@contextmanager
def storages(place: Place) -> Iterator[World]:
    """Yield a git storage with repositories, and Praefect's database without their records."""
    with place.database.connect() as connection:
        connection.execute(SCHEMAS["new"].encode())
    storage = marked(place.directory / "gitaly-0")
    for project in range(3):
        repository(storage, hashed(project))
    walked = {"database": "praefect", "primary": "gitaly-0", "storages": {"gitaly-0": {"path": str(storage)}}}
    place.write(
        {"praefect": {"dsn": place.database.dsn, "gitlab_schemas": ["praefect"]}}, virtual_storages={"default": walked}
    )
    yield World({}, place.database.dsn)


@contextmanager
def standby(place: Place) -> Iterator[World]:
    """Yield a database `main` that owns everything, on a server of its own, and its streaming standby `ci`."""
    with ExitStack() as running:
        primary = running.enter_context(own_server())
        dsn = primary.create_database("gitlabhq")
        listed = ["gitlab_main", "gitlab_ci", "gitlab_shared"]
        with psycopg.connect(dsn, autocommit=True) as connection:
            ensure_control_schema(connection, "main", listed)
            connection.execute("CREATE TABLE public.ci_builds (id bigint PRIMARY KEY)")
        copy = primary.standby("ci")
        running.callback(copy.abandon)
        captured = {"gitlab_schemas": listed, "tables": ["public.ci_builds"]}
        place.write({"main": {"dsn": dsn, **captured}, "ci": {"dsn": copy.dsn("gitlabhq"), **captured}})
        yield World({}, dsn)


def _fill(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        build(connection, _ROWS)


def _captured(dsn: str) -> dict[str, Any]:
    return {"dsn": dsn, "gitlab_schemas": ["gitlab_main"], "tables": [*TABLES, "public.users"]}


WORLDS: Final[Mapping[str, Callable[[Place], AbstractContextManager[World]]]] = {
    "README.md": servers,
    "docs/how-to/console.md": sample,
    "docs/how-to/guarding-a-switchover.md": standby,
    "docs/how-to/history-and-reports.md": sample,
    "docs/how-to/moving-repositories.md": gitservers,
    "docs/how-to/providers/rds.md": sample,
    "docs/how-to/registry.md": sample,
    "docs/how-to/routing.md": gitservers,
    "docs/how-to/running.md": role,
    "docs/how-to/storage-walks.md": storages,
    "docs/how-to/switchover.md": standby,
    "docs/how-to/writing-a-migration.md": sample,
    "docs/reference/security.md": sample,
    "docs/tutorial/first-migration.md": nothing,
}
"""Page with commands that are run → what they find."""
