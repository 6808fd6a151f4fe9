"""A synchronous standby that comes and goes: while it is away, commits are in the WAL and decoded, but not visible.

Only sessions with `synchronous_commit = on` wait for it; sessions with `local` continue.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from consumers.testing.waiting import until
from infra.stack import EmbeddedStack
from infra.stack.postgresql.server import EmbeddedPostgres

_AWAY_SECONDS = (0.8, 4.0)
_PRESENT_SECONDS = (1.0, 3.5)
_QUIET_SHARE = 0.35
_STOPPED_SHARE = 0.25
_VISIT_SHARE = 0.1


class ComingAndGoing:
    """Takes the standby away and brings it back, until `settle` brings it back for good.

    `quiet` is set during some of its absences: sessions that don't wait for it should pause then, so that readers of
    the topics reach the end while commits are still invisible. `visit` is called in others (the second one, then one in
    ten), which last until it returns.
    """

    def __init__(self, stack: EmbeddedStack, name: str, draw: random.Random, visit: Callable[[], None]) -> None:
        self.outages = {"frozen": 0, "stopped": 0}
        self.quiet = threading.Event()
        self.error: BaseException | None = None
        self._primary = stack.postgres
        self._name = name
        self._draw = draw
        self._visit = visit
        self._visits = False
        self._standby: EmbeddedPostgres = stack.standby(name)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name="standby", daemon=True)
        with self._primary.connect() as connection:
            # Set by `standby`: the server would send events only once the standby has them, hiding what is tested here.
            connection.execute("ALTER SYSTEM RESET synchronized_standby_slots")
            connection.execute(
                sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(sql.Literal(f'ANY 1 ("{name}")'))
            )
            connection.execute("SELECT pg_reload_conf()")
            until(lambda: self._is_synchronous(connection), "the standby to be synchronous")

    def start(self, *, visits: bool) -> None:
        """Start taking it away, with or without calls of `visit`."""
        self._visits = visits
        self._thread.start()

    def settle(self) -> None:
        """Bring it back for good; raise any error since the start."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Remove it, so that commits no longer wait for it."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        with self._primary.connect() as connection:
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")
        self._standby.abandon()
        self._primary.forget_standby(self._name)
        shutil.rmtree(self._standby.directory, ignore_errors=True)

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error
        finally:
            self.quiet.clear()

    def _run(self) -> None:
        draw = self._draw
        with self._primary.connect() as connection:
            while not self._over.wait(draw.uniform(*_PRESENT_SECONDS)):
                seconds = draw.uniform(*_AWAY_SECONDS)
                visited = self._visits and (draw.random() < _VISIT_SHARE or sum(self.outages.values()) == 1)
                if not visited and draw.random() < _QUIET_SHARE:
                    self.quiet.set()
                with self._stopped() if draw.random() < _STOPPED_SHARE else self._frozen():
                    self._over.wait(seconds)
                    if visited:
                        self._visit()
                self.quiet.clear()
                until(lambda: self._is_synchronous(connection), "the standby to be back")

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Freeze the WAL receiver, as a hanging machine or network does."""
        with self._standby.connect() as connection:
            row = connection.execute("SELECT pid FROM pg_stat_wal_receiver").fetchone()
        assert row is not None, "the standby has no WAL receiver"
        os.kill(row[0], signal.SIGSTOP)
        try:
            self.outages["frozen"] += 1
            yield
        finally:
            os.kill(row[0], signal.SIGCONT)

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        self._standby.stop()
        try:
            self.outages["stopped"] += 1
            yield
        finally:
            self._standby.start()

    def _is_synchronous(self, connection: psycopg.Connection[Any]) -> bool:
        row = connection.execute(
            "SELECT FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming'"
            " AND sync_state = 'quorum'",
            (self._name,),
        ).fetchone()
        return row is not None
