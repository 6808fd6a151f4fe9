"""A long-running transaction: VACUUM cannot remove rows rewritten since it started."""

from __future__ import annotations

from infra.health.indicator import Cursor, Fine, Indicator, Signal, Stop, Subject, number

_OLDEST = """
    SELECT pid, application_name, extract(epoch FROM clock_timestamp() - xact_start)::float8
      FROM pg_stat_activity
     WHERE application_name NOT LIKE 'headrace %'
       AND backend_type IN ('client backend', 'parallel worker') AND pid <> pg_backend_pid()
       AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
       AND (datid = (SELECT oid FROM pg_database WHERE datname = current_database()))
     ORDER BY xact_start LIMIT 1
"""


class LongTransactions(Indicator):
    """Throttles while a transaction is older than this many seconds, by default an hour. Needs pg_monitor."""

    name = "long_transactions"
    default = 3600
    sees_others = True

    def signal(self, cursor: Cursor, subject: Subject) -> Signal:
        """See Indicator.signal."""
        row = cursor.execute(_OLDEST).fetchone()
        if row is None or row[2] <= number(subject.limit):
            return Fine()
        return Stop(f"a transaction of process {row[0]} ({row[1] or 'no name'}) has been open for {row[2]:,.0f} s")
