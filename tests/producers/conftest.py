"""A source on a fresh database, for the tests of the producer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.stack.postgresql.server import EmbeddedPostgres
from producers.session.loop import USUAL, Timing
from tests.conftest import Database
from tests.producers.major_servers import MajorServer, major_server, oldest_installed
from tests.producers.servers import own_server
from tests.producers.sources import Source, settings_for
from tests.producers.switchover.ends import Ends


@pytest.fixture
def new_source(bootstrap_servers: str, prefix: str, database: Database) -> Callable[..., Source]:
    """A function `(ddl, *tables, timing, **more)` that runs `ddl` and returns the source that captures `tables`."""

    def make(ddl: str, *tables: str, timing: Timing = USUAL, **more: Any) -> Source:
        connection = database.connect()
        connection.execute(ddl.encode())
        return Source(settings_for(bootstrap_servers, prefix, database.dsn, *tables, **more), connection, timing=timing)

    return make


@pytest.fixture(scope="module")
def ends_server() -> Iterator[EmbeddedPostgres]:
    """A server for one module, whose databases a switchover may move."""
    with own_server() as running:
        yield running


@pytest.fixture(scope="module")
def oldest_server() -> Iterator[MajorServer]:
    """The same, for the oldest PostgreSQL that is installed from a package."""
    version = oldest_installed()
    if version is None:
        pytest.skip("no other PostgreSQL than the stack's is installed")
    with major_server(version) as running:
        yield running


@pytest.fixture
def ends(request: pytest.FixtureRequest, prefix: str, tmp_path: Path) -> Iterator[Ends]:
    """The two databases of a switchover that has not started; with `on_the_oldest_too`, of each version."""
    server = request.getfixturevalue(getattr(request, "param", "ends_server"))
    with Ends(server, prefix, tmp_path) as made:
        yield made
