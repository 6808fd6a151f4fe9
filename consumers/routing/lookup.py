"""Looks up a repository's nodes while `rehash_moves` moves it from its md5 home to its rendezvous home.

The migration goes through the names in order, in each of the partitions of `consumers.routing.placement`, and records
its progress in `headrace.rehash_cursors`. A reader caches the table and reads it again once a second, regardless of the
number of its threads, and never for a single name.

The rule, which docs/how-to/routing.md explains: ask the first of `homes(name)`; if it has no such repository, ask the
second, once. A repository that is there is then found at every moment, however old the cursors are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import field
from functools import partial
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

import psycopg

from consumers.routing.placement import PARTITIONS, Algorithm, Placement, order_key, partition_of
from infra.postgres import connect as postgres
from infra.settings.database_login import Where
from infra.settings.gitserver import GitserverSettings
from schemas.errors import HeadraceError, SettingsError, Unavailable
from schemas.lazy_dataclass import dataclass

_QUERY: Final = "SELECT partition, upto, finished FROM headrace.rehash_cursors"

_PATIENCE_SECONDS: Final = 5.0
"""How long the first lookup waits for the first query, and a close for a query in progress."""

_LOG: Final = logging.getLogger(__name__)
"""Python's own logging, which the application configures: headrace's log belongs to headrace's commands."""


class CursorTooOld(Unavailable):
    """Ask the two nodes of `homes(name)`, which are always right, or wait for the database."""


class Cursor(NamedTuple):
    """The progress of one partition: every name up to and including `upto` was passed, or all of them."""

    upto: bytes | None
    finished: bool

    def passed(self, key: bytes) -> bool:
        return self.finished or (self.upto is not None and key <= self.upto)


@dataclass(frozen=True)
class Reading:
    """The table's content, not older than `asked_at`, in seconds of the reader's clock."""

    asked_at: float
    cursors: Mapping[int, Cursor] = field(default_factory=dict)
    """By partition; a missing one has passed no name."""

    def algorithm(self, name: str) -> Algorithm:
        """Return the algorithm that places the name: rendezvous once its partition's cursor has passed it."""
        cursor = self.cursors.get(partition_of(name))
        return Algorithm.RENDEZVOUS if cursor is not None and cursor.passed(order_key(name)) else Algorithm.MD5


NEVER: Final = Reading(asked_at=float("-inf"))
"""The reading before the first query."""


def homes(placement: Placement, name: str, reading: Reading) -> tuple[str, ...]:
    """Return the two nodes to ask for a repository, in this order; one if both are the same.

    The second has the repository if the first does not: it is being moved, was cloned there by a process with older or
    newer cursors, or could not be moved.
    """
    chosen = reading.algorithm(name)
    first = placement.home(name, chosen)
    other = placement.home(name, Algorithm.MD5 if chosen is Algorithm.RENDEZVOUS else Algorithm.RENDEZVOUS)
    return (first,) if other == first else (first, other)


class Asker(Protocol):
    """Reads the cursors. `ask` raises HeadraceError; `close` may be called at any time."""

    def ask(self) -> Mapping[int, Cursor]:
        """Return the cursors by partition."""
        ...

    def close(self) -> None: ...


class Database:
    """Asks the table, by a connection that it keeps; its role needs SELECT on that table and nothing else."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self._connection: psycopg.Connection | None = None

    def ask(self) -> Mapping[int, Cursor]:
        """Return the cursors, none if the migration never ran.

        Raises DatabaseUnavailable, SettingsError, or PreflightFailed if the role may not read them.
        """
        try:
            with postgres.translated(self._where):
                connection = self._connected()
                try:
                    found = connection.execute(_QUERY, prepare=False).fetchall()
                except psycopg.errors.UndefinedTable:
                    return {}
        except HeadraceError:
            self.close()
            raise
        return {
            partition: Cursor(None if upto is None else upto.encode(), finished)
            for partition, upto, finished in found
            if 0 <= partition < PARTITIONS
        }

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> psycopg.Connection:
        if self._connection is None:
            self._connection = postgres.connect(self._where, name="routing")
            self._connection.execute("SET statement_timeout = '5s'")
            if postgres.is_standby(self._connection):
                raise SettingsError(
                    f"{postgres.described(self._where)} is a standby, whose cursors may be out of date",
                    remedy="use the dsn of the primary for routing",
                )
        return self._connection


class Router:
    """Looks up repositories for an application. Thread-safe; close it, or use it in a `with`.

    A lookup does no I/O: a background thread reads the cursors every `refresh_seconds` from the first lookup on; in a
    forked process it is started again. While the database is unavailable the router uses the last cursors and logs that
    once, and `homes` stays right.
    """

    def __init__(
        self,
        where: Where,
        gitserver: GitserverSettings,
        *,
        connect: Callable[[Where], Asker] = Database,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._placement = Placement(gitserver.nodes, gitserver.pins)
        self._refresh_seconds = gitserver.refresh_seconds
        self._sure_seconds = gitserver.grace_seconds / 2
        self._connect = partial(connect, where)
        self._clock = clock
        self._reading = NEVER
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._asked = threading.Event()
        self._stopping = threading.Event()
        self._problem: str | None = None

    def homes(self, name: str) -> tuple[str, ...]:
        """Return the one or two nodes to ask for a repository: the second, once, when the first does not have it."""
        return homes(self._placement, name, self._latest())

    def home(self, name: str) -> str:
        """Return the node that a repository belongs to now, such as for a new clone.

        Raises CursorTooOld if that is uncertain, since the database did not respond for half of `grace_seconds`.
        """
        reading = self._latest()
        if self._clock() - reading.asked_at > self._sure_seconds:
            raise CursorTooOld(
                f"the cursors of rehash_moves were last read {self._age(reading)}: {self._problem or 'no response'}"
            )
        return self._placement.home(name, reading.algorithm(name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading the cursors. A later lookup starts it again."""
        with self._lock:
            self._stopping.set()
            if self._thread is not None:
                self._thread.join(_PATIENCE_SECONDS)
            self._thread = None

    def _age(self, reading: Reading) -> str:
        return "never" if reading is NEVER else f"{self._clock() - reading.asked_at:.0f} seconds ago"

    def _latest(self) -> Reading:
        # A forked process has the object but not the thread.
        if self._thread is None or not self._thread.is_alive():
            self._start()
        asked = self._asked
        if not asked.wait(_PATIENCE_SECONDS):
            asked.set()  # no other thread waits
        return self._reading

    def _start(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._stopping = threading.Event()
                self._asked = threading.Event()
                self._thread = threading.Thread(target=self._follow, name="headrace routing", daemon=True)
                self._thread.start()

    def _follow(self) -> None:
        stopping, asked = self._stopping, self._asked
        try:
            with closing(self._connect()) as table:
                while not stopping.is_set():
                    self._ask(table)
                    asked.set()
                    stopping.wait(self._refresh_seconds)
        finally:
            asked.set()

    def _ask(self, table: Asker) -> None:
        at = self._clock()
        try:
            cursors = table.ask()
        except Exception as error:  # of any kind, since the application's lookups must continue
            if str(error) != self._problem:
                _LOG.warning("routing uses old cursors: %s", error)
            self._problem = str(error)
        else:
            if self._problem is not None:
                _LOG.info("routing has current cursors again")
            self._problem = None
            if at >= self._reading.asked_at:  # a thread that is being stopped may have an older reading
                self._reading = Reading(at, cursors)
