"""A world of gitservers, driven without Kafka."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Build, Database
from tests.consumers.gitserver.driver import World
from tests.consumers.gitservers import Application, make_tables


@pytest.fixture
def world(
    new_databases: Callable[[str | None], Database],
    template_database: Callable[[str, Build], str],
    bootstrap_servers: str,
    prefix: str,
    tmp_path: Path,
) -> World:
    database = new_databases(template_database("gitservers", make_tables))
    return World(database, tmp_path, kafka=bootstrap_servers, prefix=prefix)


@pytest.fixture
def application(world: World) -> Application:
    return Application(world.settings, world.connection)
