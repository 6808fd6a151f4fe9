"""Sessions waiting for a lock on a table of the migration or on one of its rows."""

from __future__ import annotations

from infra.health.indicator import Cursor, Fine, Indicator, Signal, Stop, Subject, number

# A session waiting for a row waits for a transaction, and holds a tuple lock or a lock on the table.
# headrace's own sessions do not count: they wait for each other occasionally.
_WAITING = """
    SELECT count(DISTINCT waiting.pid)
      FROM pg_locks waiting
      JOIN pg_stat_activity a ON a.pid = waiting.pid
     WHERE NOT waiting.granted AND a.application_name NOT LIKE 'headrace %%'
       AND waiting.waitstart < now() - interval '1 second'
       AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = waiting.pid AND l.relation = ANY(%s::regclass[]))
"""


class LockWaits(Indicator):
    """Throttles when more sessions than this wait for over a second for locks on its tables, by default 5."""

    name = "lock_waits"
    default = 5

    def signal(self, cursor: Cursor, subject: Subject) -> Signal:
        """See Indicator.signal."""
        row = cursor.execute(_WAITING, (list(subject.tables),)).fetchone()
        waiting = int(row[0]) if row else 0
        if waiting <= number(subject.limit):
            return Fine()
        return Stop(f"{waiting} sessions are waiting for locks on {', '.join(subject.tables)}")
