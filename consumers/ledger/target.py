"""The connection to the database that a migration writes; reconnects when it is lost."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import psycopg

from consumers.ledger.error_policy import Action, rule_for, stopped
from consumers.ledger.progress import LOCALLY_DURABLE
from infra.postgres import connect
from infra.service import log
from infra.service.service_state import DATABASE, THIS
from infra.service.signals import shut_down
from infra.settings.database_login import Where
from schemas.errors import HeadraceError, Interrupted, Unavailable

Connection = psycopg.Connection[Any]
T = TypeVar("T")

LOCK_TIMEOUT: Final = """
    SELECT set_config('lock_timeout', greatest(1, least(5000, nullif(setting::int, 0) / 2))::text, false)
      FROM pg_settings WHERE name = 'statement_timeout'
"""
"""Five seconds, or half the role's statement_timeout: a lock wait must be distinguishable from a slow statement."""
_FIRST_BACKOFF: Final = 0.1
_LAST_BACKOFF: Final = 15.0
_LASTING_SECONDS: Final = 5.0
"""Reconnecting again sooner than this is preceded by a pause."""


def backoff(attempt: int) -> float:
    """Return the pause in seconds after failed attempt number `attempt`, from 1: exponential, with jitter."""
    pause = min(_LAST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(attempt - 1, 20))
    return round(pause * random.uniform(0.75, 1.0), 3)  # noqa: S311 - jitter, not a secret


def flush(connection: Connection) -> None:
    """Make every commit before this one durable, on this server.

    Does not wait for a synchronous standby, which may be down: a failover loses effects together with their ledger.
    """
    with connection.transaction():
        connection.execute(LOCALLY_DURABLE)
        # A write of any kind, since only a commit that wrote something flushes the WAL.
        connection.execute("SELECT pg_logical_emit_message(true, 'headrace', 'flush')")


class Target:
    """One migration's connection to its database.

    `wait` is called with seconds between attempts, in the caller's thread. `missed` is called after each failed attempt
    to connect; an exception from it ends the attempts.
    """

    def __init__(
        self,
        where: Where,
        *,
        database: str,
        migration: str,
        stopping: threading.Event,
        wait: Callable[[float], object],
        search_path: Sequence[str] = (),
        missed: Callable[[], None] = lambda: None,
    ) -> None:
        self._where = where
        self._missed = missed
        self._database = database
        self._migration = migration
        self._stopping = stopping
        self._wait = wait
        self._search_path = search_path
        self._connection: Connection | None = None
        self.sessions = 0
        """The number of sessions opened. A crash or failover may have lost the last commits of a lost session."""
        self._connected_at = float("-inf")
        self._again = 0
        self._log = log.get(migration=migration, database=database)

    @property
    def connection(self) -> Connection:
        """The open connection; connects and retries until it works. Raises Interrupted when stopped meanwhile."""
        if self._connection is None or self._connection.closed:
            return self._connect()
        return self._connection

    def reconnect(self) -> Connection:
        """Replace the connection by a new one, like `connection`. Pauses if called in quick succession."""
        self._again = self._again + 1 if time.monotonic() - self._connected_at < _LASTING_SECONDS else 0
        if self._again:
            self._wait(backoff(self._again))
        return self._connect()

    def _connect(self) -> Connection:
        self._drop()
        attempt = 0
        while not self._stopping.is_set():
            try:
                self._connection = self._open()
                self.sessions += 1
                self._connected_at = time.monotonic()
                THIS.back(DATABASE)
                if attempt:
                    self._log.info("reconnected", attempt=attempt)
                return self._connection
            except (psycopg.Error, HeadraceError) as error:
                attempt += 1
                self._pause(error, attempt)
                self._missed()
        raise Interrupted(f"{self._migration} was stopped while it connected to {self._database}")

    def ask(self, question: Callable[[Connection], T]) -> T:
        """Return the result of an idempotent query, connecting and retrying until there is one.

        Raises Interrupted when stopped meanwhile, and any error that waiting cannot resolve.
        """
        attempt = 0
        while True:
            try:
                return question(self.connection)
            except (psycopg.Error, Unavailable) as error:
                attempt += 1
                if self._pause(error, attempt) is Action.RECONNECT:
                    self._drop()

    def cancel(self) -> None:
        """Cancel the running statement. Called from another thread when stopping takes too long."""
        connection = self._connection
        if connection is not None and not connection.closed:
            with contextlib.suppress(psycopg.Error):
                connection.cancel_safe(timeout=1.0)

    def cut(self) -> None:
        """Shut down the connection's socket. Called from another thread if cancelling did not help."""
        if (connection := self._connection) is not None:
            shut_down(connection)

    def finish(self, last_words: Callable[[Connection], object]) -> bool:
        """Do a last write, once and only if the connection is open: its commit makes all earlier commits durable.

        Returns whether it succeeded, or there never was a connection.
        """
        connection = self._connection
        if connection is None or connection.closed:
            return self.sessions == 0
        try:
            last_words(connection)
            flush(connection)
        except psycopg.Error as error:
            self._log.warning("last write failed", detail=connect.one_line(error))
            return False
        return True

    def close(self) -> None:
        """Close the connection, if there is one."""
        self._drop()

    def _open(self) -> Connection:
        connection = connect.connect(self._where, name=f"consume {self._migration}")
        try:
            # Lost commits are lost together with their ledger and applied again. See Consumer._close.
            connection.execute("SET synchronous_commit = off")
            connection.execute(LOCK_TIMEOUT)
            connect.search(connection, self._search_path)
            if connect.is_standby(connection):
                raise psycopg.errors.ReadOnlySqlTransaction("the server is a standby")
        except BaseException:
            connection.close()
            raise
        return connection

    def _pause(self, error: Exception, attempt: int) -> Action:
        rule = rule_for(error)
        if rule.action not in (Action.RECONNECT, Action.RETRY):
            if isinstance(error, psycopg.Error):
                connect.require_known_tables(self._where, error)
            raise stopped(error, rule, self._database) from error
        if self._stopping.is_set():
            raise Interrupted(f"{self._migration} was stopped while {self._database} did not answer") from error
        pause = backoff(attempt)
        if rule.action is Action.RECONNECT:
            THIS.away(DATABASE, connect.one_line(error))
        self._log.warning(
            rule.what, hint=rule.hint, detail=connect.one_line(error), attempt=attempt, retry_in_seconds=pause
        )
        self._wait(pause)
        return rule.action

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()
