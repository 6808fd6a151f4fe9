"""The connections that a producer finds left are those that its server accepts, by each limit."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from consumers.testing.waiting import until
from infra.postgres.connect import connect
from infra.stack.postgresql.server import EmbeddedPostgres
from producers.session.check import hindrances
from producers.snapshot.connection_limits import Shortage, session_name, shortage, worker_name
from producers.source.synchronous_commits import application_name
from tests.producers.sources import settings_for
from tests.server_versions import NEWEST, server_or_skip

pytestmark = pytest.mark.stack

ROLE = "reader"


@pytest.fixture(scope="module", params=[14, NEWEST])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    reserved = {"reserved_connections": "1"} if request.param >= 16 else {}
    with server_or_skip(
        request.param, max_connections="14", superuser_reserved_connections="2", max_wal_senders="4", **reserved
    ) as running:
        with running.connect() as administrator:
            administrator.execute(f"CREATE ROLE {ROLE} LOGIN REPLICATION PASSWORD 'x'".encode())
        yield running


@pytest.fixture(params=["", "ROLE", "DATABASE"])
def dsn(server: EmbeddedPostgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """The role's, with a limit of eight connections of the role or to the database, or with the server's alone."""
    name = f"limit_{request.param.lower()}"
    made = server.create_database(name)
    limited = {"ROLE": ROLE, "DATABASE": name}.get(request.param)
    with server.connect() as administrator:
        if limited:
            administrator.execute(f"ALTER {request.param} {limited} CONNECTION LIMIT 8".encode())
        yield make_conninfo(made, user=ROLE, password="x")
        if limited:
            administrator.execute(f"ALTER {request.param} {limited} CONNECTION LIMIT -1".encode())


def accepted(dsn: str) -> int:
    """Open as many connections as the server accepts; return their number once they are closed."""
    with ExitStack() as opened:
        for number in itertools.count():
            try:
                opened.enter_context(closing(psycopg.connect(dsn, application_name="one more")))
            except psycopg.OperationalError as error:
                if not re.search("too many (connections|clients)|remaining connection slots", str(error)):
                    raise
                return number
    raise AssertionError


def alone(connection: psycopg.Connection[Any], others: int) -> None:
    """Wait until the server has ended all sessions of clients but `connection` and so many `others`."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE usesysid IS NOT NULL AND datid IS NOT NULL"
    until(lambda: connection.execute(count).fetchone() == (others + 1,), "the sessions to end")


def test_connections_left_are_those_that_the_server_accepts(dsn: str) -> None:
    with ExitStack() as opened:
        checking = opened.enter_context(closing(connect(dsn, name="check")))
        replication: list[dict[str, Any]] = [{}, {}, {"replication": "database"}]
        for others, how in enumerate(replication, 2):
            opened.enter_context(closing(psycopg.connect(dsn, autocommit=True, **how)))
            alone(checking, others)
            found = shortage(checking, "main", 32)
            assert found is not None
            # The session that asks is closed before the producer starts.
            assert found.left == accepted(dsn) + 1
            alone(checking, others)
            workers = found.left - 1
            assert shortage(checking, "main", workers) is None
            assert shortage(checking, "main", workers + 1) == Shortage(found.limit, found.left, found.left + 1)
        last = shortage(checking, "main", 32)
        assert last is not None
        # What the producer has open it need not open again.
        for own in (session_name("main"), worker_name("main")):
            opened.enter_context(closing(connect(dsn, name=own)))
        stream: dict[str, Any] = {"replication": "database", "application_name": application_name("main")}
        opened.enter_context(closing(psycopg.connect(dsn, autocommit=True, **stream)))
        assert shortage(checking, "main", 32) == last
        # Another source's producer is another session.
        opened.enter_context(closing(connect(dsn, name=session_name("other"))))
        assert shortage(checking, "main", 32) == Shortage(last.limit, last.left - 1, last.opened)


def test_check_reports_workers_for_whose_connections_there_is_no_room(
    server: EmbeddedPostgres, bootstrap_servers: str, prefix: str
) -> None:
    made = server.create_database("checked")
    with server.connect("checked") as connection:
        alone(connection, 0)
        connection.execute("CREATE TABLE t (id int PRIMARY KEY)")

        def found(workers: int) -> list[tuple[str, str]]:
            settings = settings_for(bootstrap_servers, prefix, made, "public.t", snapshot={"workers": workers})
            return [(each.problem, each.remedy) for each in hindrances(connection, settings, "main", None)]

        assert found(13) == []
        assert found(14) == [
            (
                "max_connections leaves the producer of main 14 of 15 connections, 14 of them for snapshot.workers",
                "raise that limit, or end other sessions, or lower databases.main.snapshot.workers",
            )
        ]
