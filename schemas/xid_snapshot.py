"""Decides from the text of a PostgreSQL snapshot which transactions are visible.

The text `xmin:xmax:xip,…` is that of pg_current_snapshot(): 64-bit transaction ids; all below xmin have ended, none at
or above xmax had ended, those listed were in progress. The stream has 32-bit ids, the low half.

There are two questions. Whether an earlier `Snapshot` sees transactions that may be older or younger (`sees`), and so
whether rows read at that `Moment` show them. And which transactions whose commits were decoded before are not visible
in a snapshot taken now: PostgreSQL decodes a commit once its WAL is flushed, but makes it visible to other sessions
later, much later while a synchronous standby is down. Those are the `Hidden` ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Self

from schemas.positions import Lsn

_WRAP: Final = 1 << 32
_HALF: Final = 1 << 31
_LISTED: Final = 4_096
"""The most ids kept as a set; subtransactions may use any number of ids."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The transactions visible to a query (PostgreSQL documentation, "Transactions and Identifiers")."""

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
        """Return whether the ended transaction with the low half `xid` is visible.

        The high half is the one within 2**31 of xmax: only for transactions that are not older than that.
        """
        full = self.xmax + ((xid - self.xmax + _HALF) % _WRAP) - _HALF
        return full < self.xmin or (full < self.xmax and full not in self.in_progress)


@dataclass(frozen=True, slots=True)
class Moment:
    """When rows were read: their `snapshot`, and the WAL insert position that was read after it was taken."""

    snapshot: Snapshot
    lsn: Lsn

    @classmethod
    def recorded(cls, snapshot: str | None, lsn: Lsn | None) -> Self | None:
        """Return the moment of a record, where both are None once the stream has passed it."""
        return None if snapshot is None or lsn is None else cls(Snapshot.parse(snapshot), lsn)

    def shows(self, xid: int, commit_lsn: Lsn) -> bool:
        """Return whether the rows have the effect of the transaction with the low half `xid`.

        By the position alone they have none that committed at or after `lsn`; of the others, `Snapshot.sees` decides.
        """
        return commit_lsn < self.lsn and self.snapshot.sees(xid)


class Hidden:
    """The transactions invisible in a snapshot although their commits may have been decoded before it.

    They are those in progress, and those from the snapshot's xmax to `next_xid`, an id assigned after the snapshot was
    taken: every commit decoded before it has a lower one. All others are visible, however old, or were lost by this
    server in a failover and never become visible. So the high half need not be guessed; an old transaction with the low
    half of one of these few waits for it, which is harmless.
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
        """Return the 64-bit id of the hidden transaction with the low half `xid`; None if it is visible."""
        if xid is None:
            return None
        listed = self._in_progress.get(xid)
        if listed is not None:
            return listed
        above = (xid - self._from) % _WRAP
        return self._from + above if above < self._width else None

    def any_of(self, xids: Iterable[int | None]) -> bool:
        """Return whether one of `xids`, low halves, is hidden; None means an event without a transaction."""
        if self._width <= _LISTED:
            return not self._listed.isdisjoint(xids)
        return any(self.full(xid) is not None for xid in xids)
