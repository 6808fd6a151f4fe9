"""The connection to the database that a migration writes: opened again whenever it is lost."""

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
from infra.service.signals import shut_down
from schemas.errors import HeadraceError, Interrupted, Unavailable

Connection = psycopg.Connection[Any]
T = TypeVar("T")

LOCK_TIMEOUT: Final = """
    SELECT set_config('lock_timeout', greatest(1, least(5000, nullif(setting::int, 0) / 2))::text, false)
      FROM pg_settings WHERE name = 'statement_timeout'
"""
"""Five seconds, or less where the role's statements may take no longer: a wait for a lock has to be told from those."""
_FIRST_BACKOFF: Final = 0.1
_LAST_BACKOFF: Final = 15.0
_LASTING_SECONDS: Final = 5.0
"""A connection that had to be replaced sooner than this did not help, and the next one is waited with."""


def backoff(attempt: int) -> float:
    """Return how many seconds to pause after failed attempt number `attempt`, from 1: doubling, with a jitter."""
    pause = min(_LAST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(attempt - 1, 20))
    return round(pause * random.uniform(0.75, 1.0), 3)  # noqa: S311 - to spread members, not to be secret


def flush(connection: Connection) -> None:
    """Make every commit before this one durable, on this server.

    No synchronous standby is waited for: it may be away, and what a failover loses is lost together with its ledger.
    """
    with connection.transaction():
        connection.execute(LOCALLY_DURABLE)
        # Something that surely is written, since only a commit of something flushes the WAL.
        connection.execute("SELECT pg_logical_emit_message(true, 'headrace', 'flush')")


class Target:
    """One migration's connection to its database.

    `wait` is called with seconds between tries, by the thread that asked; `missed` after each try to connect that
    failed: what it raises ends the tries.
    """

    def __init__(
        self,
        dsn: str,
        *,
        database: str,
        migration: str,
        stopping: threading.Event,
        wait: Callable[[float], object],
        search_path: Sequence[str] = (),
        missed: Callable[[], None] = lambda: None,
    ) -> None:
        self._dsn = dsn
        self._missed = missed
        self._database = database
        self._migration = migration
        self._stopping = stopping
        self._wait = wait
        self._search_path = search_path
        self._connection: Connection | None = None
        self.sessions = 0
        """How many were opened. With one that was lost, a crash or a failover may have taken back its last commits."""
        self._connected_at = float("-inf")
        self._again = 0
        self._log = log.get(migration=migration, database=database)

    @property
    def connection(self) -> Connection:
        """The open connection; connects, trying until it works. Raises Interrupted when stopped meanwhile."""
        if self._connection is None or self._connection.closed:
            return self._connect()
        return self._connection

    def reconnect(self) -> Connection:
        """Open a new connection in place of the old; as `connection`. Pauses where that is done again and again."""
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
                if attempt:
                    self._log.info("connected again", attempt=attempt)
                return self._connection
            except (psycopg.Error, HeadraceError) as error:
                attempt += 1
                self._pause(error, attempt)
                self._missed()
        raise Interrupted(f"{self._migration} was stopped while it connected to {self._database}")

    def ask(self, question: Callable[[Connection], T]) -> T:
        """Return the answer to a question that may be asked twice, connecting and trying until there is one.

        Raises Interrupted when stopped meanwhile, and what waiting cannot mend.
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
        """Cancel the statement under way; called from another thread when stopping takes too long."""
        connection = self._connection
        if connection is not None and not connection.closed:
            with contextlib.suppress(psycopg.Error):
                connection.cancel_safe(timeout=1.0)

    def cut(self) -> None:
        """Shut the connection's socket down; called from another thread when cancelling did not help."""
        if (connection := self._connection) is not None:
            shut_down(connection)

    def finish(self, last_words: Callable[[Connection], object]) -> bool:
        """Do a last write, once and only if the connection stands: its commit makes all before it durable.

        Returns whether it did, or nothing was ever written.
        """
        connection = self._connection
        if connection is None or connection.closed:
            return connection is None
        try:
            last_words(connection)
            flush(connection)
        except psycopg.Error as error:
            self._log.warning("the last write failed", detail=connect.one_line(error))
            return False
        return True

    def close(self) -> None:
        """Close the connection, if there is one."""
        self._drop()

    def _open(self) -> Connection:
        connection = connect.connect(self._dsn, name=f"consume {self._migration}")
        try:
            # A lost tail of commits is lost together with its ledger, and read again. See Consumer._close.
            connection.execute("SET synchronous_commit = off")
            connection.execute(LOCK_TIMEOUT)
            connect.search(connection, self._search_path)
            if connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
                raise psycopg.errors.ReadOnlySqlTransaction("the server is a standby")
        except BaseException:
            connection.close()
            raise
        return connection

    def _pause(self, error: Exception, attempt: int) -> Action:
        rule = rule_for(error)
        if rule.action not in (Action.RECONNECT, Action.RETRY):
            if isinstance(error, psycopg.Error):
                connect.require_known_tables(self._dsn, error)
            raise stopped(error, rule, self._database) from error
        if self._stopping.is_set():
            raise Interrupted(f"{self._migration} was stopped while {self._database} did not answer") from error
        pause = backoff(attempt)
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
