"""Events that came before their rows are visible: the partitions that wait for a transaction of the source.

PostgreSQL decodes a commit once its WAL is flushed, and lets other sessions see it later: a moment later in plain use,
and not before a synchronous standby that is away is back. An apply transaction that does not see the event's
transaction finds no row, or an old one, and must not count the event as done. So such an event waits, and all after it
in its partition with it, while other partitions continue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from consumers.batches import Waiting
from consumers.ledger import Place
from consumers.target import Connection
from infra import log, metrics
from schemas.errors import HeadraceError

SHORT_WAITS: Final = (0.001, 0.002, 0.004, 0.008)
"""Seconds for which the same transaction is tried again before its partition is set aside: most take no longer."""
_FIRST_LOOK: Final = 0.01
_LAST_LOOK: Final = 0.25
_LOUD_SECONDS: Final = 1.0
"""A transaction that stays invisible for longer is told of: a synchronous standby is away, as a rule."""

_VISIBLE: Final = """
    SELECT xid FROM unnest(%s::text[]) AS waiting(xid)
     WHERE pg_visible_in_snapshot(xid::xid8, pg_current_snapshot()) OR xid::xid8 >= pg_current_xact_id()
"""
"""An id that was not given out yet, though its commit was decoded, is of a transaction that a failover lost."""


class NotVisibleYet(HeadraceError):
    """The transaction is committed, and becomes visible by itself."""

    def __init__(self, waiting: Mapping[Place, Waiting]) -> None:
        super().__init__(f"transactions of {len(waiting)} partitions are not visible yet")
        self.waiting = waiting


class Unseen:
    """The partitions of one consumer that wait, each for one transaction."""

    def __init__(self, migration: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._migration = migration
        self._clock = clock
        self._waiting: dict[Place, Waiting] = {}
        self._since = self._next = 0.0
        self._pause = _FIRST_LOOK
        self._said = False
        self._log = log.get(migration=migration)

    @property
    def places(self) -> Collection[Place]:
        """The partitions that wait."""
        return self._waiting.keys()

    def add(self, waiting: Mapping[Place, Waiting]) -> None:
        """Have these partitions wait too; the first look at them is soon."""
        if not self._waiting:
            self._since = self._clock()
        self._waiting.update(waiting)
        self._pause = _FIRST_LOOK
        self._next = self._clock() + self._pause
        self._count()

    def keep_only(self, places: Collection[Place]) -> None:
        """Forget the partitions that are not among `places`: others have them now."""
        for place in self._waiting.keys() - set(places):
            del self._waiting[place]
        self._count()

    def seconds(self, most: float) -> float:
        """Return how long until the next look, `most` at most."""
        return max(0.0, min(most, self._next - self._clock())) if self._waiting else most

    def due(self) -> bool:
        """Whether to look now."""
        return bool(self._waiting) and self._clock() >= self._next

    def look(self, connection: Connection) -> list[Place]:
        """Return the partitions that need not wait any more, and forget them. A duplicate asks again."""
        xids = {str(each.xid) for each in self._waiting.values()}
        visible = {int(xid) for (xid,) in connection.execute(_VISIBLE, (list(xids),))}
        now = self._clock()
        self._pause = min(_LAST_LOOK, 2 * self._pause)
        self._next = now + self._pause
        found = [place for place, each in self._waiting.items() if each.xid in visible]
        for place in found:
            del self._waiting[place]
        self._count()
        if self._waiting and not self._said and now - self._since > _LOUD_SECONDS:
            self._said = True
            self._log.warning(
                "events wait until their transactions are visible; is a synchronous standby away?",
                partitions=[f"{place.topic}/{place.partition}" for place in self._waiting],
            )
        elif self._said and not self._waiting:
            self._said = False
            self._log.info("the transactions are visible", waited_seconds=round(now - self._since, 1))
        return found

    def _count(self) -> None:
        metrics.UNSEEN.labels(self._migration).set(len(self._waiting))
