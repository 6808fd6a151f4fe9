"""Effects outside of the database: what a migration has at hand for them, and how the runtime drives them.

A migration's `work` is a generator. The runtime takes a step of it between its batches and closes it whenever the
migration has to rest, so that whatever it has under way ends there, in its `finally`.
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
    """What `work` says when it gives control back."""

    BUSY = "busy"
    """It goes on as soon as it may."""
    WAITING = "waiting"
    """For time to pass, or for another member; nothing to do just now, but not done."""
    DONE = "done"
    """Nothing is left to do anywhere, by any member, as the database has it now."""


@dataclass(frozen=True, slots=True)
class WorkStatus:
    """How far `work` is, as `headrace status` shows it."""

    given_up: int = 0
    """How much ended without being done. A migration is not shown as complete then."""
    reported: int = 0
    """How much was done, with something that an operator has to know."""
    reached: Mapping[str, str] = field(default_factory=dict)
    """Partition of the work → which part of it is behind the work, in words."""


class Starts:
    """When `work` may begin the next of what it does, such as a move: `max_rate` and `pause_ms` hold for these too.

    Kept while `work` begins anew, so that errors and pauses make none of them come sooner.
    """

    def __init__(self, settings: MigrationSettings) -> None:
        self._pacing = Pacing(settings)
        self._not_before = 0.0

    @property
    def may_begin(self) -> bool:
        """Whether the next may begin now; else yield Pace.WAITING and ask again."""
        return time.monotonic() >= self._not_before

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count what is done inside as one that was begun, however it ends."""
        began = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            self._not_before = now + self._pacing.done(1, now - began)


class Outside:
    """What `work` has at hand: the settings, a database session of its own, and transactions that hold the fence."""

    def __init__(self, settings: Settings, migration: Migration, database: str) -> None:
        self.settings = settings
        self.run = 0
        """The migration's present run."""
        self.starts = Starts(settings.migration(migration.name))
        """The pace at which `work` may begin what it does."""
        self._migration = migration
        self._database = database
        self._session: Connection | None = None

    @property
    def session(self) -> Connection:
        """A connection of `work`'s own, autocommitting and durable: its advisory locks end with the member.

        A connection that was lost is never replaced under the same generator, since its locks are gone: the next use
        raises, and `work` begins anew.
        """
        if self._session is None:
            database = self.settings.database(self._database)
            session = connect.connect(database.dsn.get_secret_value(), name=f"consume {self._migration.name}")
            session.execute("SET lock_timeout = '5s'")
            connect.search(session, database.search_path)
            self._session = session
        return self._session

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Open a transaction of the session in which this member may write; see `fence.hold` for what it raises."""
        with self.session.transaction(), self.session.cursor() as cursor:
            fence.hold(
                cursor,
                migration=self._migration.name,
                run=self.run,
                gitlab_schema=self._migration.gitlab_schema,
                database=self._database,
            )
            yield cursor

    def cancel(self) -> None:
        """Cancel the statement under way; called from another thread when stopping takes too long."""
        session = self._session
        if session is not None and not session.closed:
            with contextlib.suppress(psycopg.Error):
                session.cancel_safe(timeout=1.0)

    def cut(self) -> None:
        """Shut the session's socket down; called from another thread when cancelling did not help."""
        if (session := self._session) is not None:
            shut_down(session)

    def close(self) -> None:
        """Close the session, and with it free its locks."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(psycopg.Error):
                session.close()
