"""A question of the operator's own."""

from __future__ import annotations

from consumers.health.indicator import Cursor, Fine, Indicator, Signal, Stop, Subject


class Sql(Indicator):
    """Stops while the query of the settings returns a row whose first column is neither null nor false.

    A text in that column is the reason. There is none by default.
    """

    name = "sql"
    default = ""

    def signal(self, cursor: Cursor, subject: Subject) -> Signal:
        """See Indicator.signal."""
        assert isinstance(subject.limit, str)
        row = cursor.execute(subject.limit.encode()).fetchone()
        if row is None or row[0] is None or row[0] is False:
            return Fine()
        return Stop(row[0] if isinstance(row[0], str) else "the settings' own query says so")
