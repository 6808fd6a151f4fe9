"""A PostgreSQL server of a test's own, with settings that the shared one must not have."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.stack.postgres import EmbeddedPostgres
from infra.stack.processes import Keeper


@contextmanager
def own_server(**settings: str) -> Iterator[EmbeddedPostgres]:
    """A running server, gone at the end with all of its standbys' and copies' data beside it."""
    # Not below pytest's own directory, which nobody else may enter: the server is another user's when we are root.
    with tempfile.TemporaryDirectory(prefix="headrace-test-") as place:
        Path(place).chmod(0o755)
        keeper = Keeper()
        server = EmbeddedPostgres(Path(place) / "postgres", keeper, fsync=False, settings=settings)
        try:
            server.start()
            yield server
        finally:
            server.abandon()
            keeper.close()
