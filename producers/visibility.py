"""What a PostgreSQL snapshot sees, decided here from its text form.

The text `xmin:xmax:xip,…` is that of pg_current_snapshot(): 64-bit transaction ids; below xmin all have ended, at or
above xmax none had begun, those listed were in progress. The stream has 32-bit ids, the low half.
"""

from __future__ import annotations

from dataclasses import dataclass

_WRAP = 1 << 32
_HALF = 1 << 31


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

        The high half is the one that puts it within 2**31 of xmax, which PostgreSQL's own wraparound guard assures.
        """
        full = self.xmax + ((xid - self.xmax + _HALF) % _WRAP) - _HALF
        return full < self.xmin or (full < self.xmax and full not in self.in_progress)
