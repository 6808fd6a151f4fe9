"""A world of gitservers, driven without Kafka."""

from __future__ import annotations

import pytest

from tests.consumers.gitserver.driver import World


@pytest.fixture
def world(gitserver_world: World) -> World:
    return gitserver_world
