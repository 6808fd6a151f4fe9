"""An idle consumer detects that its database no longer owns the gitlab schema.

While it keeps its partitions, their next events wait for a consumer of the wrong database.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import psycopg
import pytest

from consumers.migrations.skip_resets import SkipResets
from consumers.runtime.assembly import consumer_of
from consumers.runtime.totals import Totals
from consumers.testing.waiting import PATIENCE, until
from infra.postgres.control import ensure_control_schema
from infra.settings.model import Settings
from infra.stack.postgresql.databases import DatabaseServer
from schemas.errors import OwnershipMoved
from tests.conftest import Database
from tests.consumers.container_repositories import DEFAULT, TABLE, Feed, fill
from tests.producers.servers import own_server

pytestmark = pytest.mark.stack

MOVE = "UPDATE headrace.schema_ownership SET owner = 'second', epoch = 2"


@dataclass
class Idle:
    """A consumer in the database `first`, which has applied everything, and the database `second`."""

    settings: Settings
    first: psycopg.Connection
    second: psycopg.Connection
    stopping: threading.Event = field(default_factory=threading.Event)

    def start(self, pool: ThreadPoolExecutor) -> Future[Totals]:
        """Start it; return once it has read the only event, which needs no change."""
        for name, connection in (("first", self.first), ("second", self.second)):
            ensure_control_schema(connection, name, ["gitlab_main"] if name == "first" else [])
            connection.execute(TABLE.encode())
        self.second.execute(
            "INSERT INTO headrace.schema_ownership (gitlab_schema, owner) VALUES ('gitlab_main', 'first')"
        )
        fill(self.first, {1: DEFAULT})
        Feed(self.settings, database="first").snapshot({1: DEFAULT})
        kind = SkipResets.configure(self.settings.migration("skip_resets"))
        running = pool.submit(consumer_of(self.settings, kind, "first", stopping=self.stopping).run)
        until(self._has_read, "the only event is read")
        return running

    def _has_read(self) -> bool:
        row = self.first.execute("SELECT sum(skipped) FROM headrace.progress").fetchone()
        return row == (1,)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


@pytest.fixture
def idle(
    bootstrap_servers: str, prefix: str, database: Database, pool: ThreadPoolExecutor
) -> Iterator[Callable[..., Idle]]:
    """A function that creates one whose first database is on `server`."""
    made: list[Idle] = []

    def make(server: DatabaseServer) -> Idle:
        dsn = server.create_database(f"{prefix}_first")
        section = {"gitlab_schemas": ["gitlab_main"], "tables": ["public.container_repositories"]}
        settings = Settings.model_validate(
            {
                "prefix": prefix,
                "kafka": {"bootstrap_servers": bootstrap_servers},
                "databases": {"first": {"dsn": dsn, **section}, "second": {"dsn": database.dsn, **section}},
                "migrations": {"skip_resets": {"continuous": True}},
            }
        )
        made.append(Idle(settings, psycopg.connect(dsn, autocommit=True), database.connect()))
        return made[-1]

    yield make
    for each in made:
        each.stopping.set()
        each.first.close()


def test_idle_consumer_exits_once_gitlab_schema_was_given_away(
    idle: Callable[..., Idle], pool: ThreadPoolExecutor
) -> None:
    with own_server() as server:
        consumer = idle(server)
        running = consumer.start(pool)
        consumer.first.execute(MOVE)
        with pytest.raises(OwnershipMoved, match="gitlab_main is owned by second, not by first"):
            running.result(PATIENCE)


@pytest.mark.long
def test_idle_consumer_exits_once_another_database_owns_the_schema_and_its_own_is_gone(
    idle: Callable[..., Idle], pool: ThreadPoolExecutor
) -> None:
    with own_server() as server:
        consumer = idle(server)
        running = consumer.start(pool)
        server.kill()
        consumer.second.execute(MOVE)
        with pytest.raises(OwnershipMoved, match="first does not answer, and gitlab_main is owned by second"):
            running.result(PATIENCE)


@pytest.mark.long
def test_idle_consumer_waits_for_its_database_while_no_other_owns_the_schema(
    idle: Callable[..., Idle], pool: ThreadPoolExecutor
) -> None:
    with own_server() as server:
        consumer = idle(server)
        running = consumer.start(pool)
        server.kill()
        server.start()
        first = psycopg.connect(consumer.settings.database("first").dsn.get_secret_value(), autocommit=True)
        until(
            lambda: first.execute(
                "SELECT 1 FROM pg_stat_activity WHERE application_name = 'headrace consume skip_resets'"
            ).fetchone(),
            "it is connected again",
        )
        first.close()
        assert not running.done()
        consumer.stopping.set()
        running.result(PATIENCE)
