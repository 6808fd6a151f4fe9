"""Distinguishes a row that cannot be applied from a statement that fails for every row.

A rejected transaction is bisected down to the change that is rejected alone. If its error may be the statement's (a
missing column or privilege, or only a trigger's for this row), other rows are the evidence: if one was changed since,
or is changed in a transaction that is rolled back, only the row is at fault. A row that is already up to date is no
evidence: no trigger runs and no column is written.
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
"""How many other rows have to fail before the statement is considered at fault."""
_LOOKED_AT: Final = 100
"""The maximum of rows tried, including those already up to date, which are no evidence."""
_TOGETHER: Final = 2
"""How often several changes are retried together before they are bisected."""


class Verdict(Enum):
    """What to do with rejected changes."""

    RECOVER = "recover"
    """Follow the rule of the error."""
    AGAIN = "again"
    """Retry: the obstacle is gone. At most once per change: if it then fails in its own transaction, it is at fault."""
    HALVE = "halve"
    DEAD_LETTER = "dead letter"
    """The change is at fault, or indistinguishable from one that is."""


class FailingRows:
    """Judges the rejected changes of one consumer.

    `plan` plans records with a maximum of changes per sub-batch. `try_out` runs the transaction of one change in place
    of a sub-batch's and rolls it back; it returns whether that changed something.
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
        """Set the records, before a sub-batch of them is tried for the first time."""
        self._records = records
        self._applied = False

    def end(self) -> None:
        """Release the settled records, which would double the memory of the next batch."""
        self._records = ()

    def applied(self, rows: int) -> None:
        """Record that a transaction changed `rows`, which shows that not every row fails."""
        self._applied = self._applied or rows > 0

    def judge(self, sub_batch: SubBatch, error: Exception, attempt: int) -> tuple[Verdict, Exception]:
        """Return the verdict on an error of `sub_batch` in attempt number `attempt`, and the error to recover from.

        That is another error if trying other rows raised one.
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
            return Verdict.DEAD_LETTER
        if rule.tries is not None and self._tried(sub_batch) < rule.tries:
            return Verdict.RECOVER
        works = self._works_for_others(sub_batch)
        origin = origin_of(sub_batch.origins[0])
        if works and not self._applied and origin != self._spared and self._passes(sub_batch):
            self._spared = origin
            return Verdict.AGAIN
        # Without evidence, a mostly transient error becomes a dead letter after its retries, any other stops.
        if works is False or (works is None and rule.tries is None):
            return Verdict.RECOVER
        self._applied = False  # the next one needs its own evidence
        return Verdict.DEAD_LETTER

    def _passes(self, sub_batch: SubBatch) -> bool:
        """Whether the change is no longer rejected, also if its row is now up to date."""
        return self._works(sub_batch.changes[0], sub_batch) is not False

    def _tried(self, sub_batch: SubBatch) -> int:
        """Count how often the change was rejected, also before the consumer reread its position."""
        origin = origin_of(sub_batch.origins[0])
        self._tries = self._tries + 1 if origin == self._last else 1
        self._last = origin
        return self._tries

    def _works_for_others(self, sub_batch: SubBatch) -> bool | None:
        """Return whether another row can be applied; None if no other row can be tried."""
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
        """Return whether a change can be applied; None, no evidence, if it changes nothing."""
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
    """Whether one row may have caused the error."""
    return rule.action in (Action.SPLIT, Action.DOUBT) or (rule.action is Action.RETRY and rule.tries is not None)
