"""What is left of a migration, asked from the database and from nothing else."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

import psycopg

from consumers.contract import counting
from consumers.contract.counting import UNLIMITED
from consumers.contract.migration import Migration
from infra.postgres import connect
from infra.service import log
from infra.settings.model import Settings
from schemas.errors import Interrupted

SAY_AFTER: Final = 5.0
"""Seconds of counting after which it is said that it goes on, and how to end it."""


def remaining(settings: Settings, migration: Migration, database: str, stopping: threading.Event | None = None) -> int:
    """Return how many rows are left to change, however long the server takes to count them. Writes nothing.

    It says so when that is long. Once `stopping` is set it is cancelled, and Interrupted is raised.
    """
    dsn = settings.database(database).dsn.get_secret_value()
    stop = stopping or threading.Event()
    with connect.translated(dsn), connect.connect(dsn, name=f"verify {migration.name}") as connection:
        ended = threading.Event()
        watch = threading.Thread(target=_watch, args=(connection, migration.name, stop, ended), daemon=True)
        watch.start()
        try:
            # No limit for a role or a database applies: an exact answer was asked for.
            found = counting.count(connection, migration, limit_ms=UNLIMITED).exact
        except psycopg.errors.QueryCanceled:
            if stop.is_set():
                raise Interrupted(f"{migration.name}: stopped while it counted", remedy="nothing was changed") from None
            raise
        finally:
            ended.set()
            watch.join()
    assert found is not None
    return found


def _watch(connection: psycopg.Connection[Any], name: str, stop: threading.Event, ended: threading.Event) -> None:
    """Say that counting takes long, and cancel it once `stop` is set."""
    say_at = time.monotonic() + SAY_AFTER
    while not ended.wait(0.1):
        if stop.is_set():
            # Again and again, since one may come between two statements.
            counting.cancel(connection)
        elif time.monotonic() > say_at:
            say_at = float("inf")
            log.get(migration=name).info("still counting what is left; Ctrl-C ends it")
