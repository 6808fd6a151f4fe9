"""Sessions whose commits are decoded before they are visible."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg

from consumers.testing.waiting import PATIENCE, until
from tests.producers.processes import SCHEMA
from tests.producers.sources import Source

FILLED = f"{SCHEMA}; INSERT INTO t VALUES (0, 0, 'first')"
"""Its topic is not empty: otherwise each start would copy it from scratch."""


class Late:
    """A session whose commits wait for the absent standby until they are released."""

    def __init__(self, source: Source, pool: ThreadPoolExecutor) -> None:
        self._source = source
        self._pool = pool
        self._writer = psycopg.connect(dsn_of(source), autocommit=True)
        self._writer.execute("SET synchronous_commit = on")
        self._committing: Future[Any] | None = None

    def execute(self, statement: str) -> None:
        """Return when it is committed and its commit was answered."""
        self._committing = self._pool.submit(self._writer.execute, statement.encode())
        self._committing.result(PATIENCE)

    def commit(self, statement: str) -> None:
        """Return when the commit is in the WAL and waits."""
        self._committing = self._pool.submit(self._writer.execute, statement.encode())
        waits = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
        pid = self._writer.info.backend_pid
        until(lambda: self._source.connection.execute(waits, (pid,)).fetchone() == ("SyncRep",), "the commit to wait")

    def release(self) -> None:
        """Make it visible."""
        self._source.connection.execute("SELECT pg_cancel_backend(%s)", (self._writer.info.backend_pid,))
        assert self._committing is not None
        self._committing.result(PATIENCE)

    def close(self) -> None:
        if self._committing is not None and not self._committing.done():
            self.release()
        self._writer.close()


def dsn_of(source: Source) -> str:
    return source.settings.database("main").dsn.get_secret_value()


@contextmanager
def late(source: Source) -> Iterator[Late]:
    with ThreadPoolExecutor(1) as pool, contextlib.closing(Late(source, pool)) as session:
        yield session


def answers_go_on(source: Source) -> None:
    """Wait until the producer has been sent all that is written, and then has answered the server twice."""
    connection = source.connection
    row = connection.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
    assert row is not None
    seen: set[object] = set()

    def answered() -> bool:
        found = connection.execute(
            "SELECT reply_time FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid"
            " WHERE s.slot_name = %s AND r.sent_lsn >= %s",
            (source.slot, row[0]),
        ).fetchone()
        seen.update(found or ())
        return len(seen) > 2

    until(answered, "the server to be answered")


def visible(source: Source, key: int) -> bool:
    return source.connection.execute("SELECT 1 FROM t WHERE id = %s", (key,)).fetchone() is not None
