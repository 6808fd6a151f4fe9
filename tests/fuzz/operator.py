"""The operator of a round: follows the remedy of a refused start or of a stopped table."""

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
from tests.fuzz.reasons import ANY, SLOW_START, TAKEN_OUT, hidden, is_one_of, reasons_of, taken_out_since
from tests.fuzz.world import Broken
from tests.producers.sources import capturing

_MOST: Final = 12
"""Refusals in one round after which the source counts as unable to start."""


class Operator:
    """Follows remedies, and checks that each is justified: `happened` are the round's acts so far."""

    def __init__(self, settings: Settings, execute: Callable[[str], bool], happened: Sequence[Act]) -> None:
        """`execute` runs a statement as the application does, and returns whether the database accepted it."""
        self.settings = settings
        self._execute = execute
        self._happened = happened
        self.refusals: list[str] = []
        self.left_out: dict[str, str] = {}
        """Tables removed from the settings, each with the reason for which it cannot be captured."""
        self._repaired: set[tuple[str, str]] = set()
        self._undone: set[str] = set()

    @property
    def tables(self) -> tuple[str, ...]:
        return self.settings.database("main").tables

    def require_justified(self, reason: str, table: str | None) -> None:
        """Raise Broken unless an act on the table, or (None) on any table, justifies the reason.

        With a table, the reason is why it is stopped; with None, why a start or a request is refused.
        """
        if table is not None and is_one_of(reason, hidden(ANY)):
            raise Broken(f"{table} is stopped for good although a GRANT would fix it: {reason}")
        if not self._blamed(reason, table):
            raise Broken(f"no act on {table or 'any table'} justifies this stop: {reason}")

    def follow(self, end: End) -> None:
        """Follow the remedy of a refused start, so that the next one gets further. Raises Broken."""
        if not end.error:
            raise Broken(str(end))
        self._count(end)
        if is_one_of(end.problem, [SLOW_START]):
            return
        blamed = reasons_of(end.problem, self.tables)
        for table, reason in blamed:
            self.require_justified(reason, table)
            self._require_nothing_copied(reason)
        if not self.checked():
            # The obstacle may be gone by now; then the next start is not refused for it.
            if end.problem in self._undone:
                raise Broken(f"`headrace check` reports ready, but a start fails: {end}")
            self._undone.add(end.problem)
            return
        if "--start-over" in end.remedy:
            self._start_over()
        elif blamed and blamed[0][0] is not None:
            for table, reason in blamed:
                if table is not None:
                    self.restart_from_scratch(table, reason)
        elif "--from-scratch" in end.remedy:
            for table in self._named(end.problem):
                self.restart_from_scratch(table, end.problem)
        else:
            self._repair_or_leave_out(blamed[0][1])

    def _count(self, end: End) -> None:
        self.refusals.append(end.problem)
        if len(self.refusals) > _MOST:
            raise Broken(f"every start is refused: {end}")

    def _require_nothing_copied(self, reason: str) -> None:
        """Raise Broken if hidden rows of a table whose copy has begun refuse a start: only the copy should wait."""
        if not is_one_of(reason, hidden(ANY)):
            return
        begun = read_sources(self.settings).get("main", SourceState()).snapshots
        for table, state in begun.items():
            if not state.from_scratch and is_one_of(reason, hidden(table)):
                raise Broken(f"a start is refused for rows of {table} that it does not need to read: {reason}")

    def restart_from_scratch(self, table: str, reason: str) -> bool:
        """Repair a stopped table, and have it re-snapshotted from scratch; return whether it then has to be equal."""
        repaired = self._repair(reason, table)
        try:
            ask(self.settings, "main", SnapshotRequest(table=table, from_scratch=True))
        except Refused as refused:
            self.require_justified(refused.problem, None)
            if "--start-over" in refused.remedy:
                self._start_over()
            else:
                self._repair_or_leave_out(refused.problem, table)
            return False
        return repaired

    def checked(self) -> list[str]:
        """Return the problems that `headrace check` reports."""
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
                self._repair_or_leave_out(refused.problem)
            else:
                return

    def _repair_or_leave_out(self, problem: str, table: str | None = None) -> None:
        """Have the application repair a table, once; if that was not enough, stop capturing it."""
        for name in [table] if table is not None else self._named(problem):
            if (name, problem) not in self._repaired and self._repair(problem, name, also_partly=True):
                self._repaired.add((name, problem))
                continue
            self.left_out[name] = problem
            left = [each for each in self.tables if each != name]
            if not left:
                raise Broken(f"no table is left: {problem}")
            self.settings = capturing(self.settings, *left)

    def _repair(self, reason: str, table: str, *, also_partly: bool = False) -> bool:
        """Run a table's repairs, latest act first; return whether everything that the reason blames was repaired."""
        blamed = self._blamed(reason, None)
        done = []
        for act in reversed(self._happened):
            if act.table in (None, table) and (act.table is not None or act in blamed):
                worked = [self._execute(statement) for statement in act.repairs]
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
            raise Broken(f"the refusal names no table: {problem}")
        return found


def _withdrawn(reason: str, table: str) -> bool:
    """Whether a table was stopped because the previous producer had removed it so that it can be written."""
    return is_one_of(reason, (TAKEN_OUT, taken_out_since(table)))
