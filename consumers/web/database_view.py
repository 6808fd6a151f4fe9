"""Reads what one database has recorded and knows of its slot: at most two short statements a second.

The first statement reads the records of all migrations; the second answers one of the other questions in turn. One that
takes several statements leaves out as many turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from consumers.contract.external import WorkStatus
from consumers.contract.migration import Migration
from consumers.dead_letters.given_up import read_work_status
from consumers.ledger.recorded import Records, read_records
from consumers.operations.overview.source_status import SlotView, slot_view
from consumers.web.documents import Verified
from infra.postgres import connect, control, standbys
from infra.settings.model import Settings
from infra.state.history import last_verifications
from infra.state.positions import StreamState

Connection = psycopg.Connection[Any]

_SLOT_SECONDS: Final = 2.0
_STANDBYS_SECONDS: Final = 15.0
_VERIFIED_SECONDS: Final = 15.0
_WORK_SECONDS: Final = 60.0
_WORK_STATEMENTS: Final = 9
"""The most that read_work_status sends: a transaction, a savepoint, and a migration's own query."""
_OPENING_STATEMENTS: Final = 2
_LIMITS: Final = """
    SELECT pg_catalog.set_config('statement_timeout', '1000', false),
           pg_catalog.set_config('lock_timeout', '1000', false),
           pg_catalog.set_config('default_transaction_read_only', 'on', false)
"""


@dataclass(slots=True)
class _Question:
    """Asked every `seconds`, in at most `statements`; `ask` returns whether it sent any."""

    seconds: float
    statements: int
    ask: Callable[[Connection], bool]
    due: float = float("-inf")


class DatabaseView:
    """The last answers of one database; each is replaced as a whole, so that another thread may read it."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        stream: Callable[[], StreamState | None],
        working: Sequence[type[Migration]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stream` returns the producer's record of the source with this database's name.

        `working` are the migrations with work outside the database that may write here; `clock` returns seconds.
        """
        self._settings = settings
        self._section = settings.database(name)
        self._name = name
        self._stream = stream
        self._clock = clock
        self._connection: Connection | None = None
        self._turns_left_out = 0
        self._questions = [
            _Question(_SLOT_SECONDS, 1, self._ask_slot),
            _Question(_STANDBYS_SECONDS, 2, self._ask_standbys),
            _Question(_VERIFIED_SECONDS, 1, self._ask_verified),
            *(_Question(_WORK_SECONDS, _WORK_STATEMENTS, self._asking_work(kind)) for kind in working),
        ]
        self.records: Records | None = None
        self.answered = False
        """Whether it answered last."""
        self.slot = SlotView()
        self.waits_for: list[str] = []
        self.verified: Mapping[str, Verified] = {}
        """Migration → what was counted last."""
        self.work: Mapping[str, WorkStatus] = {}
        """Migration → the progress of its work outside the database."""

    def look(self) -> None:
        """Ask; raises HeadraceError, and what was known of the migrations stays."""
        try:
            with connect.translated(self._section.address):
                connection = self._connected()
                self.records = read_records(connection, self._name)
                if self.records is not None:
                    control.require_same_prefix(self.records.prefix, self._name, self._settings.prefix)
                self._ask_next(connection)
            self.answered = True
        except BaseException:
            self.answered, self.slot, self.waits_for = False, SlotView(), []
            self.rest()
            raise

    def rest(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect.connect(self._section.address, name="web")
            self._connection.execute(_LIMITS)
            self._turns_left_out = _OPENING_STATEMENTS
        return self._connection

    def _ask_next(self, connection: Connection) -> None:
        """Ask the question that has been due for longest, unless earlier statements count for this turn."""
        if self._turns_left_out:
            self._turns_left_out -= 1
            return
        now = self._clock()
        for question in sorted(self._questions, key=lambda each: each.due):
            if question.due > now:
                return
            question.due = now + question.seconds
            if question.ask(connection):
                self._turns_left_out = question.statements - 1
                return

    def _ask_slot(self, connection: Connection) -> bool:
        stream = self._stream()
        if stream is None:
            return False
        self.slot = slot_view(connection, stream)
        return True

    def _ask_standbys(self, connection: Connection) -> bool:
        stream = self._stream()
        if stream is None:
            return False
        self.waits_for = standbys.awaited(connection, stream.slot)
        return True

    def _ask_verified(self, connection: Connection) -> bool:
        found = last_verifications(connection)
        self.verified = {name: Verified(at=at, remaining=left) for name, (at, left) in found.items()}
        return True

    def _asking_work(self, kind: type[Migration]) -> Callable[[Connection], bool]:
        def ask(connection: Connection) -> bool:
            if self.records is None or kind.name not in self.records.migrations:
                return False
            migration = kind.configure(self._settings.migration(kind.name))
            self.work = {**self.work, kind.name: read_work_status(connection, migration)}
            return True

        return ask
