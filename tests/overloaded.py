"""Simulates the effect of an overloaded database server on a session."""

from __future__ import annotations

from infra.postgres.connect import pinned


def pinned_slowly(version: int, *, reading: bool) -> bytes:
    """Return the first statement of a session as an overloaded server carries it out."""
    return pinned(version, reading=reading).replace(b"SELECT ", b"SELECT pg_catalog.pg_sleep(60), ", 1)
