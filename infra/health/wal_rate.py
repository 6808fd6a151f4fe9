"""The rate at which the server writes WAL."""

from __future__ import annotations

import time

from infra.health.indicator import Cursor, Fine, Indicator, Signal, Stop, Subject, Unknown, number


class WalRate(Indicator):
    """Throttles above this many MB/s between two samples. Off by default, since the limit depends on the machine."""

    name = "wal_rate"
    default = False

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None

    def signal(self, cursor: Cursor, subject: Subject) -> Signal:
        """See Indicator.signal."""
        row = cursor.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").fetchone()
        now, position = time.monotonic(), int(row[0]) if row else 0
        last, self._last = self._last, (now, position)
        if last is None or now <= last[0]:
            return Unknown("first sample, no rate yet")
        rate = (position - last[1]) / (now - last[0]) / 1_000_000
        return Stop(f"WAL grows by {rate:,.1f} MB/s") if rate > number(subject.limit) else Fine()
