"""A database to stream from."""

from __future__ import annotations

import uuid

import pytest

from tests.conftest import Database


@pytest.fixture
def dsn(database: Database) -> str:
    return database.dsn


@pytest.fixture
def slot() -> str:
    """A unique name: slots belong to the whole server."""
    return f"s_{uuid.uuid4().hex}"
