"""Handles what suspends a consumer while it stays in its group: errors, a pause, an unhealthy database."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from consumers.ledger.error_policy import Action, Rule, stopped
from consumers.ledger.target import Connection, backoff
from consumers.runtime.parts import Parts
from infra.service import log, metrics

_CHECK_SECONDS: Final = 1.0


class Interruptions:
    """The interruptions of one consumer."""

    def __init__(self, parts: Parts, progress: Callable[[], None]) -> None:
        """`progress` is called between batches to report progress."""
        self._parts = parts
        self._progress = progress
        self._next_question = 0.0
        self._log = log.get(migration=parts.migration.name)

    def proceed(self, rest: float) -> bool:
        """Pause, and check the database's health; return whether records read are still valid, else reread them.

        Also asks what the operator wants: at a low rate a batch takes long.
        """
        if not (self._rested(rest) and self.healthy() and self._unpaused_in_time()):
            self._parts.positions.read_again()
            return False
        self._progress()
        return True

    def recover(self, error: Exception, rule: Rule, attempt: int) -> bool:
        """Follow the error policy; return whether the same sub-batch may be retried.

        Otherwise the position was reread from the ledger. Raises what ends the consumer.
        """
        parts, good = self._parts, False
        if rule.action is Action.REPOSITION:
            self._log.info(rule.what, reason=str(error))
        elif rule.action is Action.HOLD:
            good = self.unpaused()
        elif rule.action is Action.RETRY:
            pause = backoff(attempt)
            self._log.warning(rule.what, hint=rule.hint, attempt=attempt, retry_in_seconds=pause)
            good = parts.group.wait(pause)
        elif rule.action is Action.RECONNECT:
            self._log.warning(rule.what, hint=rule.hint, database=parts.database)
            parts.target.reconnect()
        else:
            raise stopped(error, rule, parts.database) from error
        if not good:
            self._parts.positions.read_again()
        return good

    def unpaused(self) -> bool:
        """Stay in the group without reading while the migration is paused or failed; follow the operator's pace.

        Returns whether records read are still valid.
        """
        parts = self._parts
        self._next_question = time.monotonic() + _CHECK_SECONDS
        if not parts.breaker.hold(parts.working.stop):
            return False
        ask = parts.ledger.wishes(parts.database)

        def paused(connection: Connection) -> bool:
            wishes = ask(connection)
            parts.pacing.follow(wishes.max_rate, wishes.transaction_ms)
            return wishes.paused

        if not parts.target.ask(paused):
            return True
        parts.working.stop()
        self._log.info("migration paused", hint="resume it with `headrace resume`")
        metrics.SUSPENDED.labels(parts.migration.name).set(1)
        good = parts.group.wait(_CHECK_SECONDS, still=lambda: self._still(paused))
        metrics.SUSPENDED.labels(parts.migration.name).set(0)
        self._log.info("migration resumed")
        return good

    def _rested(self, seconds: float) -> bool:
        """Pause, up to the moment when the operator wants another pace, or a pause of the migration."""
        pacing = self._parts.pacing
        pace = pacing.pace
        parts = math.ceil(seconds / _CHECK_SECONDS)
        for left in range(parts, 0, -1):
            if not self._parts.group.rest(seconds / parts):
                return False
            if left > 1 and not self._unpaused_in_time():
                return False
            if pacing.pace != pace:
                break
        return True

    def _unpaused_in_time(self) -> bool:
        return time.monotonic() < self._next_question or self.unpaused()

    def healthy(self) -> bool:
        """Stay in the group without reading while throttled; return whether records read are still valid."""
        parts = self._parts
        if not parts.throttle.due() or not parts.target.ask(parts.throttle.look):
            return True
        parts.working.stop()
        return parts.group.wait(parts.throttle.interval, still=lambda: self._still(parts.throttle.look))

    def _still(self, interrupted: Callable[[Connection], bool]) -> bool:
        """Report progress and return whether the interruption continues."""
        self._progress()
        return self._parts.target.ask(interrupted)
