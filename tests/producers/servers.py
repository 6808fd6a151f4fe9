"""A PostgreSQL server of a test's own, with settings that the shared one must not have."""

from __future__ import annotations

from contextlib import AbstractContextManager

from infra.stack.postgresql.server import EmbeddedPostgres
from tests.server_versions import NEWEST, server_of


def own_server(**settings: str) -> AbstractContextManager[EmbeddedPostgres]:
    """A running server of the stack's version, gone at the end with all of its standbys' and copies' data beside it."""
    return server_of(NEWEST, **settings)
