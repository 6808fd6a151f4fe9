"""A console of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.settings.model import Settings
from tests.consumers.web.console import Client, running


@pytest.fixture
def console(settings: Settings) -> Iterator[Client]:
    """The console of the test's database, with the token of alice, who may change things."""
    with running(settings) as client:
        yield client


@pytest.fixture(scope="module")
def alone() -> Iterator[Client]:
    """A console without databases, whose Kafka does not answer: for requests that get no further than the guard."""
    settings = Settings.model_validate({"kafka": {"bootstrap_servers": "127.0.0.1:1"}})
    with running(settings) as client:
        yield client
