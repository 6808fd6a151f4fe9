"""A custom query in the settings."""

from __future__ import annotations

from infra.health.indicator import Cursor, Fine, Indicator, Signal, Stop, Subject


class Sql(Indicator):
    """Throttles while the query returns a row whose first column is neither null nor false.

    A string in that column is the reason. There is no query by default. It names tables with their schema.
    """

    name = "sql"
    default = ""

    def signal(self, cursor: Cursor, subject: Subject) -> Signal:
        """See Indicator.signal."""
        assert isinstance(subject.limit, str)
        row = cursor.execute(subject.limit.encode()).fetchone()
        if row is None or row[0] is None or row[0] is False:
            return Fine()
        return Stop(row[0] if isinstance(row[0], str) else "the query in the settings returned a row")
