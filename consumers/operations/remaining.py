"""Counts the rows that a migration has left to change, from the database alone."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

import psycopg

from consumers.contract import counting
from consumers.contract.counting import UNLIMITED
from consumers.contract.migration import Migration
from infra.postgres import connect
from infra.service import interrupts, log
from infra.settings.model import Settings
from schemas.errors import Interrupted

SAY_AFTER: Final = 5.0
"""Seconds after which a slow count is logged."""
_CANCEL_SECONDS: Final = 3.0
"""How long a stop waits for the server to cancel a count, which otherwise continues there."""


def remaining(settings: Settings, migration: Migration, database: str, stopping: threading.Event | None = None) -> int:
    """Return how many rows are left to change, however long the server takes to count them. Writes nothing.

    A long count is logged. Once `stopping` is set the count is canceled, and Interrupted is raised.
    """
    stop = stopping or threading.Event()
    with connect.session(settings.database(database), name=f"verify {migration.name}") as connection:
        ended = threading.Event()
        watch = threading.Thread(target=_watch, args=(connection, migration.name, stop, ended), daemon=True)
        watch.start()
        try:
            # The role's and the database's timeouts do not apply, since an exact count was asked for.
            with interrupts.finishing(_CANCEL_SECONDS):
                found = counting.count(connection, migration, limit_ms=UNLIMITED).exact
        except psycopg.errors.QueryCanceled:
            if stop.is_set():
                raise Interrupted(f"{migration.name}: the count was stopped", remedy="nothing was changed") from None
            raise
        finally:
            ended.set()
            watch.join()
    assert found is not None
    return found


def _watch(connection: psycopg.Connection[Any], name: str, stop: threading.Event, ended: threading.Event) -> None:
    """Log that counting takes long, and cancel it once `stop` is set."""
    say_at = time.monotonic() + SAY_AFTER
    while not ended.wait(0.1):
        if stop.is_set():
            # Repeatedly, since a cancellation between two statements has no effect.
            counting.cancel(connection)
        elif time.monotonic() > say_at:
            say_at = float("inf")
            log.get(migration=name).info("still counting remaining rows")
