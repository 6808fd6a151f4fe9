"""Prepared transactions, which outlive their session and retain their locks until one ends them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

_LEFT = "SELECT true FROM pg_prepared_xacts WHERE gid = %s AND database = current_database()"


@contextmanager
def ended(connection: psycopg.Connection[Any], gid: str) -> Iterator[None]:
    """Roll back prepared transaction `gid` if the test leaves it, as one that fails does: later tests would wait."""
    try:
        yield
    finally:
        if connection.execute(_LEFT, (gid,)).fetchone() is not None:
            connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
