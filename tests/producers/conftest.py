"""A source on a fresh database, for the tests of the producer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infra.stack import Stack
from tests.conftest import Database
from tests.producers.sources import Source, settings_for, until


@pytest.fixture
def new_source(bootstrap_servers: str, prefix: str, database: Database) -> Callable[..., Source]:
    """A function `(ddl, *tables, **more)` that runs `ddl` and returns the source that captures `tables`."""

    def make(ddl: str, *tables: str, **more: Any) -> Source:
        connection = database.connect()
        connection.execute(ddl.encode())
        return Source(settings_for(bootstrap_servers, prefix, database.dsn, *tables, **more), connection)

    return make


@pytest.fixture
def standby_that_never_answers(stack: Stack) -> Iterator[None]:
    """Commits with synchronous_commit = on wait for ever, once their log is flushed; all others don't."""
    with stack.postgres.connect() as connection:
        connection.execute("ALTER SYSTEM SET synchronous_commit = 'local'")
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        connection.execute("SELECT pg_reload_conf()")
        until(lambda: connection.execute("SHOW synchronous_standby_names").fetchone() == ("nobody",), "the setting")
        yield
        connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
        connection.execute("ALTER SYSTEM RESET synchronous_commit")
        connection.execute("SELECT pg_reload_conf()")
        until(lambda: connection.execute("SHOW synchronous_standby_names").fetchone() == ("",), "the setting")
