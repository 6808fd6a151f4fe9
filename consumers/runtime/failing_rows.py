"""Tells a row that cannot be applied from a statement that fails for every row.

A transaction that is refused is done again in halves, down to the change that is refused alone. Where its error may as
well be the statement's (a column that is not there, a right that is missing, or only a trigger's for this row), other
rows tell: if one was changed since, or is changed in a transaction that is rolled back, the row alone is at fault. One
that is up to date already tells nothing: a trigger does not run for it, nor is a column of it written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Final

import psycopg

from consumers.contract.decisions import Change
from consumers.ledger.error_policy import Action, Rule, rule_for
from consumers.ledger.progress import Place
from consumers.planning.planner import SubBatch, origin_of
from consumers.planning.prefilter import Record
from schemas.errors import HeadraceError
from schemas.positions import Offset

_OTHERS: Final = 5
"""How many other rows have to fail too before the statement is held to be at fault."""
_LOOKED_AT: Final = 100
"""How many are tried at most; those that are up to date already tell nothing."""
_TOGETHER: Final = 2
"""How often several changes are tried again together before they are halved."""


class Verdict(Enum):
    """What is to be done with changes that were refused."""

    RECOVER = "recover"
    """What the rule of the error says."""
    AGAIN = "again"
    """Whatever was in the way has gone. Said once of a change: what then fails in its own transaction is at fault."""
    HALVE = "halve"
    PARK = "park"
    """The one change is at fault, or cannot be told from one that is."""


class FailingRows:
    """One consumer's judgement of the changes that are refused.

    `plan` plans what was read, with so many changes in each sub-batch at most. `try_out` does the transaction of one
    change in place of those of a sub-batch, and rolls it back; it returns whether that changed something.
    """

    def __init__(
        self,
        plan: Callable[[Sequence[Record], int], Iterator[SubBatch]],
        try_out: Callable[[Change, SubBatch], bool],
    ) -> None:
        self._plan = plan
        self._try_out = try_out
        self._records: Sequence[Record] = ()
        self._applied = False
        self._last: tuple[Place, Offset] | None = None
        self._spared: tuple[Place, Offset] | None = None
        self._tries = 0

    def begin(self, records: Sequence[Record]) -> None:
        """Note what was read, before a sub-batch of it is tried for the first time."""
        self._records = records
        self._applied = False

    def end(self) -> None:
        """Let go of what was read: it is settled, and with the next batch beside it would take twice the memory."""
        self._records = ()

    def applied(self, rows: int) -> None:
        """Note that a transaction that changed so many `rows` was committed: what is refused then is not every row."""
        self._applied = self._applied or rows > 0

    def judge(self, sub_batch: SubBatch, error: Exception, attempt: int) -> tuple[Verdict, Exception]:
        """Say what is to be done about an error of `sub_batch`, which was tried for time number `attempt`.

        The error to recover from comes with it: another one, where other rows were tried and met it.
        """
        rule = rule_for(error)
        if not isinstance(error, psycopg.Error) or not sub_batch.changes or not _row_s(rule):
            return Verdict.RECOVER, error
        if len(sub_batch.changes) > 1:
            halve = rule.action is not Action.RETRY or attempt >= _TOGETHER
            return Verdict.HALVE if halve else Verdict.RECOVER, error
        try:
            return self._judge_alone(sub_batch, rule), error
        except (psycopg.Error, HeadraceError) as other:
            return Verdict.RECOVER, other

    def _judge_alone(self, sub_batch: SubBatch, rule: Rule) -> Verdict:
        if rule.action is Action.SPLIT:
            return Verdict.PARK
        if rule.tries is not None and self._tried(sub_batch) < rule.tries:
            return Verdict.RECOVER
        works = self._works_for_others(sub_batch)
        origin = origin_of(sub_batch.origins[0])
        if works and not self._applied and origin != self._spared and self._passes(sub_batch):
            self._spared = origin
            return Verdict.AGAIN
        # A change that nothing can be compared with: what passes by itself, mostly, has not; what does not, stops.
        if works is False or (works is None and rule.tries is None):
            return Verdict.RECOVER
        self._applied = False  # the next one needs evidence of its own
        return Verdict.PARK

    def _passes(self, sub_batch: SubBatch) -> bool:
        """Whether the one change is refused no more, also where its row needs nothing by now."""
        return self._works(sub_batch.changes[0], sub_batch) is not False

    def _tried(self, sub_batch: SubBatch) -> int:
        """Count how often the one change was refused, also before the consumer read its position anew."""
        origin = origin_of(sub_batch.origins[0])
        self._tries = self._tries + 1 if origin == self._last else 1
        self._last = origin
        return self._tries

    def _works_for_others(self, sub_batch: SubBatch) -> bool | None:
        """Return whether another row can be applied; None when there is no other to try."""
        if self._applied:
            return True
        failures = 0
        for change in self._others(sub_batch.changes[0]):
            works = self._works(change, sub_batch)
            if works:
                return True
            failures += works is False
            if failures == _OTHERS:
                break
        return False if failures else None

    def _works(self, change: Change, sub_batch: SubBatch) -> bool | None:
        """Return whether a change can be applied; None when it has nothing to change, and so says nothing."""
        try:
            return self._try_out(change, sub_batch) or None
        except psycopg.Error as error:
            if rule_for(error).action in (Action.RECONNECT, Action.STOP):
                raise
            return False

    def _others(self, failed: Change) -> Iterator[Change]:
        keys = {failed.key}
        for sub_batch in self._plan(self._records, 2 * _LOOKED_AT):
            for change in sub_batch.changes:
                if change.key not in keys:
                    keys.add(change.key)
                    yield change
                if len(keys) > _LOOKED_AT:
                    return


def _row_s(rule: Rule) -> bool:
    """Whether the error may be one row's."""
    return rule.action in (Action.SPLIT, Action.DOUBT) or (rule.action is Action.RETRY and rule.tries is not None)
