"""Praefect's databases for the tests of `missing_records`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest

from infra.stack import Stack
from tests.conftest import new_database
from tests.consumers.importing import World, emptied, made
from tests.consumers.praefect_database import SCHEMAS


@pytest.fixture(scope="module")
def worlds(stack: Stack) -> Iterator[Mapping[str, World]]:
    """A database of each schema for all tests: creating one takes longer than most tests."""
    with ExitStack() as opened:
        yield {schema: made(opened.enter_context(new_database(stack.postgres)), schema) for schema in SCHEMAS}


@pytest.fixture(params=sorted(SCHEMAS))
def world(request: pytest.FixtureRequest, worlds: Mapping[str, World]) -> World:
    """A database of either schema."""
    return emptied(worlds[request.param])


@pytest.fixture
def old_world(worlds: Mapping[str, World]) -> World:
    return emptied(worlds["old"])


@pytest.fixture
def new_world(worlds: Mapping[str, World]) -> World:
    return emptied(worlds["new"])
