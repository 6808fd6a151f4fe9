"""Names the transactions that a session waits for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import psycopg

from infra.postgres.connect import another, connect
from schemas.errors import HeadraceError

_LOOK_SECONDS: Final = 1.0

# From pg_locks, which shows all sessions: without pg_read_all_stats a role sees only the pids of other sessions.
# Creating a slot waits for one transaction after another, so for all that began before its current wait.
_BLOCKING: Final = """
SELECT DISTINCT l.pid, p.gid, coalesce(nullif(a.application_name, ''), 'a session'), coalesce(p.database, a.datname),
       date_trunc('second', coalesce(p.prepared, a.xact_start))::text
  FROM pg_locks w
  JOIN pg_locks l ON l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock'
                 AND l.pid IS DISTINCT FROM w.pid
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
  LEFT JOIN pg_prepared_xacts p ON l.pid IS NULL AND p.transaction = l.transactionid
 WHERE w.pid = %s AND w.locktype = 'transactionid' AND NOT w.granted
   AND (l.pid IS NOT NULL OR p.gid IS NOT NULL)
   AND (l.transactionid = w.transactionid OR coalesce(p.prepared, a.xact_start) < w.waitstart)
 ORDER BY 5, 1
"""


def blocking(connection: psycopg.Connection[Any], pid: int) -> list[str]:
    """Return the transactions that the server process `pid` waits for."""
    return [
        f"prepared transaction {gid!r} of database {database}, since {since}"
        if gid is not None
        else f"a transaction of {name} (process {process}, database {database or '?'}, since {since or '?'})"
        for process, gid, name, database, since in connection.execute(_BLOCKING, (pid,))
    ]


class Awaited:
    """Finds what a session waits for over a separate connection, since the session's own is blocked."""

    def __init__(self, connection: psycopg.Connection[Any], report: Callable[[str], None]) -> None:
        """`connection` is one to the server; `report` is called with the awaited transactions each time they change."""
        self._address = another(connection, connect_timeout=2)
        self._report = report
        self._looking: psycopg.Connection[Any] | None = None
        self._looked = 0.0
        self._names: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._looking is not None:
            with contextlib.suppress(psycopg.Error):
                self._looking.close()

    def __str__(self) -> str:
        """The transactions awaited at the last check."""
        return f"it waits for {', '.join(self._names)}" if self._names else "what it waits for is unknown"

    def look(self, pid: int) -> None:
        """Find what the server process `pid` waits for, at most once a second. Raises psycopg.Error."""
        now = time.monotonic()
        if now < self._looked + _LOOK_SECONDS:
            return
        self._looked = now
        if self._looking is None or self._looking.closed:
            try:
                self._looking = connect(self._address, name="look")
            except HeadraceError:
                return  # the waiting session reports the outage itself
        names = blocking(self._looking, pid)
        if names and names != self._names:
            self._names = names
            self._report(str(self))
        self._names = names or self._names
