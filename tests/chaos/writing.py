"""An application with many sessions that writes at a fixed rate and logs which rows have to be changed.

Each row is made one to be changed at most once, and never written again after that: any later change is the
migration's, and no later event can repair what an earlier one missed.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus

WAITING = "on"
LOCAL = "local"
"""A session's synchronous_commit."""

REPOSITORIES = "container_repositories"
STATUSES = "repositories"

_KEYS = 10_000_000
"""Keys per session."""
_BEHIND_SECONDS = 5.0
"""Maximum backlog that a delayed session makes up for."""

Row = tuple[str, int]
"""Table and id."""


class _Write(NamedTuple):
    """One statement; `wants`: its row has to be changed afterwards; `spares`: the row may be wanted later."""

    statement: str
    row: Row
    wants: bool = False
    spares: bool = False


_INSERT = (
    f"INSERT INTO public.{REPOSITORIES} (id, project_id, name, migration_state, migration_skipped_reason)"
    " VALUES (%s, 1, 'new', {})"
)
_INSERT_WANTED = _INSERT.format("'import_skipped', 2")
_INSERT_OTHER = _INSERT.format("'import_skipped', 5")
_TURN = (
    f"UPDATE public.{REPOSITORIES} SET migration_state = 'import_skipped', migration_skipped_reason = 2 WHERE id = %s"
)
_TOUCH = f"UPDATE public.{REPOSITORIES} SET name = md5(name) WHERE id = %s"
_INSERT_STATUS = (
    f"INSERT INTO public.{STATUSES} (id, top_level_namespace_id, name, path, migration_status)"
    " SELECT k, 1, 'group', 'group/' || k, {} FROM (SELECT %s::bigint) AS given(k)"
)
_WITHOUT_STATUS = _INSERT_STATUS.format("NULL")
_WITH_STATUS = _INSERT_STATUS.format("'import_complete'")


class Writers:
    """The sessions: `waiting` of them wait at each commit for the synchronous standby, `local` don't.

    `rate` is rows written per second in all; the waiting sessions write a fifth of it. `wanted` has each row that has
    to be changed, with the time (seconds since the epoch) at which its commit returned.
    """

    def __init__(
        self, dsn: str, seed: int, quiet: threading.Event, *, rate: float, waiting: int = 24, local: int = 8
    ) -> None:
        self.wanted: dict[Row, float] = {}
        self.others: set[Row] = set()
        """Rows that no migration may change."""
        self.writes = 0
        self.transactions = 0
        self.longest_commit = 0.0
        self.error: BaseException | None = None
        self._dsn = dsn
        self._quiet = quiet
        self._stop = threading.Event()
        self._lock = threading.Lock()
        kinds = [(WAITING, 0.2 * rate / waiting)] * waiting + [(LOCAL, 0.8 * rate / local)] * local
        self._threads = [
            threading.Thread(
                target=self._guarded,
                args=(mode, share, random.Random(f"{seed}/{number}"), itertools.count((number + 1) * _KEYS)),
                name=f"application {number}",
                daemon=True,
            )
            for number, (mode, share) in enumerate(kinds)
        ]
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raise the error that ended a session, if any."""
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Stop all sessions after their current commit; raise an earlier error, if any."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.check()

    def _guarded(self, *arguments: Any) -> None:
        try:
            self._run(*arguments)
        except BaseException as error:
            self.error = error

    def _run(self, mode: str, rate: float, draw: random.Random, keys: Iterator[int]) -> None:
        spare: list[Row] = []
        due = time.monotonic() + draw.random()
        with psycopg.connect(
            self._dsn, application_name=f"application {mode}", options=f"-c synchronous_commit={mode}"
        ) as connection:
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                if mode == LOCAL and self._quiet.is_set():
                    self._stop.wait(0.02)
                    continue
                writes = [_drawn(draw, keys, spare) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
                done = list(self._transaction(connection, draw, writes))
                if draw.random() < 0.05:
                    connection.rollback()
                    done = []
                else:
                    began = time.monotonic()
                    connection.commit()
                    self._note(done, time.monotonic() - began)
                # A rolled-back change leaves its row as it was; a rolled-back insert leaves none.
                updated = (write for write in writes if write.statement in (_TURN, _TOUCH) and write not in done)
                spare += [write.row for write in done if write.spares] + [write.row for write in updated]
                due = max(due, time.monotonic() - _BEHIND_SECONDS) + len(writes) / rate

    def _transaction(
        self, connection: psycopg.Connection[Any], draw: random.Random, writes: list[_Write]
    ) -> Iterator[_Write]:
        """Execute the writes, some in savepoints; yield those that were not rolled back."""
        for write in writes:
            kept, savepoint = draw.random() < 0.7, draw.random() < 0.3
            # Outside a transaction this would start one that commits.
            savepoint = savepoint and connection.info.transaction_status is not TransactionStatus.IDLE
            with contextlib.suppress(psycopg.Rollback), connection.transaction() if savepoint else _no_savepoint():
                connection.execute(write.statement.encode(), (write.row[1],))
                if savepoint and not kept:
                    raise psycopg.Rollback
            if kept or not savepoint:
                yield write

    def _note(self, done: list[_Write], seconds: float) -> None:
        now = time.time()
        with self._lock:
            self.transactions += 1
            self.writes += len(done)
            self.longest_commit = max(self.longest_commit, seconds)
            for write in done:
                if write.wants:
                    self.wanted[write.row] = now
                    self.others.discard(write.row)
                else:
                    self.others.add(write.row)


@contextlib.contextmanager
def _no_savepoint() -> Iterator[None]:
    yield


def _drawn(draw: random.Random, keys: Iterator[int], spare: list[Row]) -> _Write:
    """Return the next write; a row taken from `spare` is in no other write until this one has ended."""
    kind = draw.random()
    if kind < 0.35 and spare:
        row = spare.pop(draw.randrange(len(spare)))
        return _Write(_TURN, row, wants=True) if kind < 0.25 else _Write(_TOUCH, row, spares=True)
    if kind < 0.65:
        return _Write(_INSERT_WANTED, (REPOSITORIES, next(keys)), wants=True)
    if kind < 0.80:
        return _Write(_INSERT_OTHER, (REPOSITORIES, next(keys)), spares=True)
    if kind < 0.95:
        return _Write(_WITHOUT_STATUS, (STATUSES, next(keys)), wants=True)
    return _Write(_WITH_STATUS, (STATUSES, next(keys)))
