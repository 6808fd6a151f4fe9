"""A guarded database on each server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from infra.stack import PostgresServer, Stack
from tests.conftest import new_database
from tests.infra.guard.guarded import Guarded
from tests.server_versions import MAJORS, server_or_skip


@pytest.fixture(scope="module", params=["the stack's", "the oldest"])
def server(request: pytest.FixtureRequest, stack: Stack) -> Iterator[PostgresServer | Any]:
    if request.param == "the stack's":
        yield stack.postgres
        return
    with server_or_skip(MAJORS[0]) as running:
        yield running


@pytest.fixture
def guarded(server: PostgresServer) -> Iterator[Guarded]:
    with new_database(server) as database:
        yield Guarded(database)
