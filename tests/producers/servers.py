"""A separate PostgreSQL server for a test, with settings that the shared one must not have."""

from __future__ import annotations

from contextlib import AbstractContextManager

from infra.stack.postgresql.server import EmbeddedPostgres
from tests.server_versions import NEWEST, server_of


def own_server(**settings: str) -> AbstractContextManager[EmbeddedPostgres]:
    """A running server of the stack's version, removed at the end with the data of its standbys and copies."""
    return server_of(NEWEST, **settings)
