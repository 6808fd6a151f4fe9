"""The operator of a round: does what headrace names as the remedy of a refused start, or of a stopped table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from infra.postgres.connect import connect
from infra.settings.model import Settings
from infra.state.positions import Positions, SourceState, read_sources
from infra.state.snapshot_requests import SnapshotRequest
from producers.session.check import hindrances
from producers.session.resnapshot_request import ask
from producers.session.start_over import start_over
from schemas.errors import Refused
from tests.fuzz.acts import Act
from tests.fuzz.producing import End
from tests.fuzz.reasons import ANY, TAKEN_OUT, hidden, is_one_of, reasons_of, taken_out_since
from tests.fuzz.world import Broken
from tests.producers.sources import capturing

_MOST: Final = 12
"""Refusals in one round after which it is taken for one that will never start."""


class Operator:
    """Follows remedies, and knows what they have to be for: `happened` are the acts of the round up to now."""

    def __init__(self, settings: Settings, execute: Callable[[str], bool], happened: Sequence[Act]) -> None:
        """`execute` runs a statement as the application does, and returns whether the database took it."""
        self.settings = settings
        self._execute = execute
        self._happened = happened
        self.refusals: list[str] = []
        self.left_out: dict[str, str] = {}
        """Tables that were taken out of the settings, each with the reason for which it cannot be captured."""
        self._mended: set[tuple[str, str]] = set()
        self._undone: set[str] = set()

    @property
    def tables(self) -> tuple[str, ...]:
        return self.settings.database("main").tables

    def require_justified(self, reason: str, table: str | None) -> None:
        """Raise Broken unless something that happened to the table, or (None) to any table, is the reason.

        A table is stopped for it; with None a start is refused, or a request.
        """
        if table is not None and is_one_of(reason, hidden(ANY)):
            raise Broken(f"{table} is stopped for good for what ends with a GRANT: {reason}")
        if not self._blamed(reason, table):
            raise Broken(f"nothing that happened to {table or 'any table'} was a reason to stop for: {reason}")

    def follow(self, end: End) -> None:
        """Do what a refused start names, so that the next one goes further. Raises Broken."""
        if not end.error:
            raise Broken(str(end))
        blamed = reasons_of(end.problem, self.tables)
        for table, reason in blamed:
            self.require_justified(reason, table)
            self._require_nothing_copied(reason)
        self.refusals.append(end.problem)
        if len(self.refusals) > _MOST:
            raise Broken(f"it is refused again and again: {end}")
        if not self.checked():
            # What was in the way may be undone since; then the next start is not refused for it.
            if end.problem in self._undone:
                raise Broken(f"`headrace check` says ready, and a start: {end}")
            self._undone.add(end.problem)
            return
        if "--start-over" in end.remedy:
            self._start_over()
        elif blamed and blamed[0][0] is not None:
            for table, reason in blamed:
                if table is not None:
                    self.read_anew(table, reason)
        elif "--anew" in end.remedy:
            for table in self._named(end.problem):
                self.read_anew(table, end.problem)
        else:
            self._mend_or_leave_out(blamed[0][1])

    def _require_nothing_copied(self, reason: str) -> None:
        """Raise Broken where a start is refused for hidden rows of a table that was begun: its copy alone waits."""
        if not is_one_of(reason, hidden(ANY)):
            return
        begun = read_sources(self.settings).get("main", SourceState()).snapshots
        for table, state in begun.items():
            if not state.anew and is_one_of(reason, hidden(table)):
                raise Broken(f"a start is refused for rows of {table} that it need not read: {reason}")

    def read_anew(self, table: str, reason: str) -> bool:
        """Put a stopped table right, and have it read anew; returns whether it then has to be equal."""
        mended = self._mend(reason, table)
        try:
            ask(self.settings, "main", SnapshotRequest(table=table, anew=True))
        except Refused as refused:
            self.require_justified(refused.problem, None)
            if "--start-over" in refused.remedy:
                self._start_over()
            else:
                self._mend_or_leave_out(refused.problem, table)
            return False
        return mended

    def checked(self) -> list[str]:
        """Return what `headrace check` says is in the way."""
        positions = Positions(self.settings.prefix, self.settings.kafka)
        dsn = self.settings.database("main").dsn.get_secret_value()
        with connect(dsn, name="check", reading=True) as connection:
            return [finding.problem for finding in hindrances(connection, self.settings, "main", positions)]

    def _start_over(self) -> None:
        while True:
            try:
                start_over(self.settings, "main")
            except Refused as refused:
                self.require_justified(refused.problem, None)
                self._mend_or_leave_out(refused.problem)
            else:
                return

    def _mend_or_leave_out(self, problem: str, table: str | None = None) -> None:
        """Have the application put a table right, once; where that was not enough, capture it no more."""
        for name in [table] if table is not None else self._named(problem):
            if (name, problem) not in self._mended and self._mend(problem, name, also_partly=True):
                self._mended.add((name, problem))
                continue
            self.left_out[name] = problem
            left = [each for each in self.tables if each != name]
            if not left:
                raise Broken(f"no table is left: {problem}")
            self.settings = capturing(self.settings, *left)

    def _mend(self, reason: str, table: str, *, also_partly: bool = False) -> bool:
        """Run what puts the table right, the last act first; return whether all that the reason blames was."""
        blamed = self._blamed(reason, None)
        done = []
        for act in reversed(self._happened):
            if act.table in (None, table) and (act.table is not None or act in blamed):
                worked = [self._execute(statement) for statement in act.mends]
                done += worked if act in blamed else []
        return any(done) if also_partly else all(done)

    def _blamed(self, reason: str, table: str | None) -> list[Act]:
        return [
            act
            for act in self._happened
            if table is None or act.table in (None, table)
            if is_one_of(reason, act.justifies) or (act.unwritable and act.table and _withdrawn(reason, act.table))
        ]

    def _named(self, problem: str) -> list[str]:
        """Return the tables that a refusal names."""
        found = [table for table in self.tables if table in problem]
        if not found:
            raise Broken(f"it names no table: {problem}")
        return found


def _withdrawn(reason: str, table: str) -> bool:
    """Whether a table was stopped because the producer before had taken it out, so that it can be written."""
    return is_one_of(reason, (TAKEN_OUT, taken_out_since(table)))
