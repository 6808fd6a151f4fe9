"""What keeps a consumer from working while it stays in its group: errors, a pause, an unhealthy database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from consumers.ledger.error_policy import Action, Rule, stopped
from consumers.ledger.target import backoff
from consumers.runtime.parts import Parts
from infra.service import log, metrics

_CHECK_SECONDS: Final = 1.0


class Interruptions:
    """Of one consumer."""

    def __init__(self, parts: Parts, tell: Callable[[], None]) -> None:
        """`tell` is called now and then while nothing else is done."""
        self._parts = parts
        self._tell = tell
        self._log = log.get(migration=parts.migration.name)

    def proceed(self, rest: float) -> bool:
        """Rest, and look whether the database is healthy; return whether what was read is good, else read it again."""
        if (rest and not self._parts.group.rest(rest)) or not self.healthy():
            self._parts.positions.read_again()
            return False
        self._tell()
        return True

    def recover(self, error: Exception, rule: Rule, attempt: int) -> bool:
        """Do what the table says; return whether the same sub-batch may be tried again.

        Otherwise the position was read anew from the ledger. Raises what ends the consumer.
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
        """Stay in the group without reading as long as an operator wants; return whether what was read is good.

        So too while the migration has failed.
        """
        parts = self._parts
        if not parts.breaker.hold(parts.working.stop):
            return False
        paused = parts.ledger.pausing(parts.database)
        if not parts.target.ask(paused):
            return True
        parts.working.stop()
        self._log.info("paused; go on with `headrace resume`")
        metrics.HELD.labels(parts.migration.name).set(1)
        good = parts.group.wait(_CHECK_SECONDS, still=lambda: parts.target.ask(paused))
        metrics.HELD.labels(parts.migration.name).set(0)
        self._log.info("resumed")
        return good

    def healthy(self) -> bool:
        """Stay in the group without reading as long as the database suffers; return whether what was read is good."""
        parts = self._parts
        if not parts.holding.due() or not parts.target.ask(parts.holding.look):
            return True
        parts.working.stop()
        return parts.group.wait(parts.holding.interval, still=lambda: parts.target.ask(parts.holding.look))
