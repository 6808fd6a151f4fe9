"""What a PostgreSQL snapshot shows, decided here from its text form.

The text `xmin:xmax:xip,…` is that of pg_current_snapshot(): 64-bit transaction ids; below xmin all have ended, at or
above xmax none had ended, those listed were in progress. The stream has 32-bit ids, the low half.

There are two questions. A `Snapshot` that was taken earlier is asked about transactions that may be older or younger
(`sees`). A snapshot that is taken now is asked about transactions whose commit was decoded before: PostgreSQL decodes a
commit once its WAL is flushed, and only later lets other sessions see it, much later while a synchronous standby is
away. Those are the `Hidden` ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

_WRAP: Final = 1 << 32
_HALF: Final = 1 << 31
_LISTED: Final = 4_096
"""Up to so many ids are kept as a set; a subtransaction may take any number of them."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Which transactions' effects a query sees (documentation of PostgreSQL, "Transaction IDs and Snapshots")."""

    xmin: int
    xmax: int
    in_progress: frozenset[int] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read pg_snapshot's text form, such as `795:799:795,797`; raises ValueError if it is not one."""
        try:
            low, high, listed = text.split(":")
            return cls(int(low), int(high), frozenset(int(xid) for xid in listed.split(",") if xid))
        except ValueError:
            raise ValueError(f"not a snapshot: {text!r}; expected a form like 795:799:795,797") from None

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, sorted(self.in_progress)))}"

    def sees(self, xid: int) -> bool:
        """Whether the ended transaction with the low half `xid` is visible.

        The high half is the one that puts it within 2**31 of xmax: only for transactions that are not older than that.
        """
        full = self.xmax + ((xid - self.xmax + _HALF) % _WRAP) - _HALF
        return full < self.xmin or (full < self.xmax and full not in self.in_progress)


class Hidden:
    """The transactions that a snapshot does not show although their commits may have been decoded before it.

    They are those in progress, and those from the snapshot's xmax to `next_xid`, an id given out after the snapshot was
    taken: every commit decoded before it has a lower one. All others are visible, however old, or are no transactions
    of this server: it lost them in a failover, and nothing of them will ever be there to see. So no guess of the high
    half is needed; an old transaction that has the low half of one of these few waits for it, which does no harm.
    """

    __slots__ = ("_from", "_in_progress", "_listed", "_width")

    def __init__(self, snapshot: Snapshot, next_xid: int) -> None:
        self._from = snapshot.xmax
        self._width = max(0, next_xid - snapshot.xmax)
        self._in_progress = {xid % _WRAP: xid for xid in snapshot.in_progress}
        self._listed = frozenset((*self._in_progress, *(xid % _WRAP for xid in self._young())))

    def _young(self) -> Iterator[int]:
        return iter(range(self._from, self._from + min(self._width, _LISTED)))

    def full(self, xid: int | None) -> int | None:
        """Return the 64-bit id of the hidden transaction with the low half `xid`; None when that one is visible."""
        if xid is None:
            return None
        listed = self._in_progress.get(xid)
        if listed is not None:
            return listed
        above = (xid - self._from) % _WRAP
        return self._from + above if above < self._width else None

    def any_of(self, xids: Iterable[int | None]) -> bool:
        """Whether one of `xids`, low halves, is hidden; None is none: the event comes of no transaction."""
        if self._width <= _LISTED:
            return not self._listed.isdisjoint(xids)
        return any(self.full(xid) is not None for xid in xids)
