"""The API for effects outside the database, which `Migration.work` uses.

`work` is a generator. The runtime advances it between batches and closes it whenever the migration has to stop
working, so that its `finally` ends what is in progress.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import psycopg

from consumers.ledger import fence
from consumers.pace.pacing import Pacing
from infra.postgres import connect
from infra.service.signals import shut_down
from infra.settings.model import MigrationSettings, Settings

if TYPE_CHECKING:
    from consumers.contract.migration import Migration


Connection = psycopg.Connection[Any]
Cursor = psycopg.Cursor[Any]


class Pace(Enum):
    """What `work` yields."""

    BUSY = "busy"
    """There is more to do now."""
    WAITING = "waiting"
    """Nothing to do now, but not done: it waits for a moment or for another consumer."""
    DONE = "done"
    """According to the database, no consumer has anything left to do."""


@dataclass(frozen=True, slots=True)
class WorkStatus:
    """The progress of `work`, as `headrace status` shows it."""

    given_up: int = 0
    """How much was given up. Unless zero, the migration is not shown as complete."""
    reported: int = 0
    """How much was done with a report for the operator."""
    reached: Mapping[str, str] = field(default_factory=dict)
    """Partition of the work → the part already done, in words."""


class Starts:
    """Limits how often `work` starts a unit of work, such as a move, by `max_rate` and `pause_ms`.

    It outlives a restart of `work`, so that errors and pauses do not make the next one start sooner.
    """

    def __init__(self, settings: MigrationSettings) -> None:
        self._pacing = Pacing(settings)
        self._not_before = 0.0

    @property
    def may_begin(self) -> bool:
        """Whether the next one may start now. If not, yield Pace.WAITING and check again."""
        return time.monotonic() >= self._not_before

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count the body as one start, whether it succeeds or fails."""
        began = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            self._not_before = now + self._pacing.done(1, now - began)


class Outside:
    """The resources of `work`: the settings, its own database session, and transactions that hold the fence."""

    def __init__(self, settings: Settings, migration: Migration, database: str) -> None:
        self.settings = settings
        self.run = 0
        """The migration's current run."""
        self.starts = Starts(settings.migration(migration.name))
        """Limits how often `work` may start a unit of work."""
        self._migration = migration
        self._database = database
        self._session: Connection | None = None

    @property
    def session(self) -> Connection:
        """The connection of `work`, in autocommit mode and durable. Its advisory locks end with the consumer.

        A lost connection is not replaced while the generator lives, since its locks are gone: the next use raises,
        and `work` restarts.
        """
        if self._session is None:
            database = self.settings.database(self._database)
            session = connect.connect(database.address, name=f"consume {self._migration.name}")
            session.execute("SET lock_timeout = '5s'")
            connect.search(session, database.search_path)
            self._session = session
        return self._session

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Open a transaction in which this consumer may write. Raises as `fence.hold` does."""
        with fence.transaction(
            self.session,
            migration=self._migration.name,
            run=self.run,
            gitlab_schema=self._migration.gitlab_schema,
            database=self._database,
        ) as (cursor, _):
            yield cursor

    def cancel(self) -> None:
        """Cancel the running statement. Called from another thread when stopping takes too long."""
        session = self._session
        if session is not None and not session.closed:
            with contextlib.suppress(psycopg.Error):
                session.cancel_safe(timeout=1.0)

    def cut(self) -> None:
        """Shut down the session's socket. Called from another thread if cancelling did not help."""
        if (session := self._session) is not None:
            shut_down(session)

    def close(self) -> None:
        """Close the session, which releases its locks."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(psycopg.Error):
                session.close()
