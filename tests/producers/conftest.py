"""A source on a fresh database, for the tests of the producer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Database
from tests.producers.sources import Source, settings_for


@pytest.fixture
def new_source(bootstrap_servers: str, prefix: str, database: Database) -> Callable[..., Source]:
    """A function `(ddl, *tables, **more)` that runs `ddl` and returns the source that captures `tables`."""

    def make(ddl: str, *tables: str, **more: Any) -> Source:
        connection = database.connect()
        connection.execute(ddl.encode())
        return Source(settings_for(bootstrap_servers, prefix, database.dsn, *tables, **more), connection)

    return make
