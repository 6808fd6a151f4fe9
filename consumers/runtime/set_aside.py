"""Tracks partitions that wait at an event that cannot be applied yet, while others continue.

PostgreSQL decodes a commit once its WAL is flushed, and makes it visible to other sessions later: normally after a
moment, but with an unavailable synchronous standby only once that is back. An apply transaction that does not see the
event's transaction finds no row or an old one, and must not count the event as done. So such an event waits, with all
events after it in its partition. An event whose row another session keeps locked waits too: that session may itself
have a commit that is not visible yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from consumers.ledger.progress import Place
from consumers.ledger.target import Connection, backoff
from consumers.planning.planner import Waiting
from infra.service import log, metrics
from schemas.errors import HeadraceError

SHORT_WAITS: Final = (0.001, 0.002, 0.004, 0.008)
"""Pauses in seconds between retries before the partition is set aside; usually they suffice."""
_FIRST_LOOK: Final = 0.01
_LAST_LOOK: Final = 0.25
_LOUD_SECONDS: Final = 1.0
"""A transaction invisible for longer is logged: usually a synchronous standby is down."""

_VISIBLE: Final = """
    SELECT xid FROM pg_catalog.unnest(%s::text[]) AS waiting(xid)
     WHERE pg_visible_in_snapshot(xid::xid8, pg_current_snapshot()) OR (%s AND xid::xid8 >= pg_current_xact_id())
"""
"""An id that is not assigned yet, though its commit was decoded, belongs to a transaction lost in a failover.

Checking that consumes an id, so it is done only occasionally.
"""
_LOST_SECONDS: Final = 2.0


class NotVisibleYet(HeadraceError):
    """Wait: the transaction is committed and will become visible."""

    def __init__(self, waiting: Mapping[Place, Waiting]) -> None:
        super().__init__(f"transactions of {len(waiting)} partitions are not visible yet")
        self.waiting = waiting


class WaitingPartitions:
    """The partitions of one consumer that wait, each for a transaction or for the lock of a row."""

    def __init__(self, migration: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._migration = migration
        self._clock = clock
        self._waiting: dict[Place, Waiting] = {}
        self._locked: dict[Place, _Locked] = {}
        self._since = self._next = self._next_lost = 0.0
        self._pause = _FIRST_LOOK
        self._said = False
        self._log = log.get(migration=migration)

    @property
    def places(self) -> Collection[Place]:
        """The partitions that wait."""
        return self._waiting.keys()

    def locked(self, places: Collection[Place]) -> bool:
        """Whether one of `places` has timed out on a lock and not advanced since: wait only briefly for it."""
        return not self._locked.keys().isdisjoint(places)

    def moved(self, places: Collection[Place]) -> None:
        """Record that these partitions have advanced."""
        for place in self._locked.keys() & set(places):
            del self._locked[place]

    def add(self, waiting: Mapping[Place, Waiting]) -> None:
        """Add waiting partitions. The first check of a transaction is soon, that of a lock later each time."""
        now = self._clock()
        if not self._waiting:
            self._since = now
        self._waiting.update(waiting)
        for place, each in waiting.items():
            if each.xid is None:
                before = self._locked.get(place)
                tries = before.tries + 1 if before is not None and before.waiting == each else 1
                self._locked[place] = _Locked(each, tries, now + backoff(tries))
        self._pause = _FIRST_LOOK
        self._next = now + self._pause
        self._count()

    def keep_only(self, places: Collection[Place]) -> None:
        """Forget partitions not among `places`, which are no longer assigned."""
        for place in self._waiting.keys() - set(places):
            del self._waiting[place]
        self._count()

    def seconds(self, most: float) -> float:
        """Return the seconds until the next check, at most `most`."""
        return max(0.0, min(most, self._next - self._clock())) if self._waiting else most

    def due(self) -> bool:
        """Whether a check is due."""
        return bool(self._waiting) and self._clock() >= self._next

    def look(self, connection: Connection) -> list[Place]:
        """Return the partitions that no longer have to wait, and forget them. May be repeated."""
        xids = {str(each.xid) for each in self._waiting.values() if each.xid is not None}
        now = self._clock()
        lost_too = now >= self._next_lost
        if lost_too:
            self._next_lost = now + _LOST_SECONDS
        found = connection.execute(_VISIBLE, (list(xids), lost_too)) if xids else ()
        visible = {int(xid) for (xid,) in found}
        self._pause = min(_LAST_LOOK, 2 * self._pause)
        self._next = now + self._pause
        ready = [
            place
            for place, each in self._waiting.items()
            if (each.xid in visible if each.xid is not None else now >= self._locked[place].until)
        ]
        for place in ready:
            del self._waiting[place]
        self._count()
        self._report(now)
        return ready

    def _report(self, now: float) -> None:
        if self._waiting and not self._said and now - self._since > _LOUD_SECONDS:
            self._said = True
            unseen = [place for place, each in self._waiting.items() if each.xid is not None]
            locked = self._waiting.keys() - set(unseen)
            self._log.warning(
                "partitions waiting, others continue",
                hint="check whether a synchronous standby is down"
                if unseen
                else "look for a long transaction in pg_locks",
                transaction_not_visible=[f"{place.topic}/{place.partition}" for place in unseen],
                row_locked=[f"{place.topic}/{place.partition}" for place in locked],
            )
        elif self._said and not self._waiting:
            self._said = False
            self._log.info("no partitions waiting", waited_seconds=round(now - self._since, 1))

    def _count(self) -> None:
        metrics.WAITING.labels(self._migration).set(len(self._waiting))


class _Locked:
    """An event whose row was locked: the number of timeouts in sequence, and until when its partition waits."""

    __slots__ = ("tries", "until", "waiting")

    def __init__(self, waiting: Waiting, tries: int, until: float) -> None:
        self.waiting = waiting
        self.tries = tries
        self.until = until
