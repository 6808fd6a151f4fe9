"""Every migration of headrace keeps the promises of consumers/testing/promises.py.

Each is found by its file, and its case by the migration's name: tests/consumers/cases/<name>.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.operations.catalog import migrations
from consumers.testing.promises import PROMISES, NotApplicable
from consumers.testing.world import World, world_of
from infra.settings.model import Settings
from tests.conftest import Database
from tests.consumers.cases import case_of

pytestmark = pytest.mark.stack


@pytest.fixture(params=sorted(migrations(Settings())))
def name(request: pytest.FixtureRequest) -> str:
    """Each migration."""
    return str(request.param)


@pytest.fixture
def world(name: str, bootstrap_servers: str, prefix: str, database: Database, tmp_path: Path) -> World:
    kind = migrations(Settings())[name]
    return world_of(kind, case_of(name), bootstrap_servers, prefix, database.connect(), database.dsn, tmp_path)


@pytest.mark.parametrize("promise", PROMISES)
def test_migration_keeps_the_promise(world: World, promise: str) -> None:
    try:
        PROMISES[promise](world)
    except NotApplicable as reason:
        pytest.skip(str(reason))
