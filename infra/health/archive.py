"""WAL segments waiting to be archived: they fill the disk if WAL is written faster than it is archived."""

from __future__ import annotations

from typing import Final

from infra.health.indicator import Cursor, Fine, Indicator, Signal, Stop, Subject, number

GITLABS_LIMIT: Final = 42

_PENDING = """
    SELECT CASE current_setting('archive_mode') WHEN 'off' THEN NULL
           ELSE (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name ~ '^[0-9A-F]{24}\\.ready$') END
"""


class Archive(Indicator):
    """Throttles above this many pending WAL segments, by default GitLab's 42. Needs pg_monitor."""

    name = "archive"
    default = GITLABS_LIMIT

    def signal(self, cursor: Cursor, subject: Subject) -> Signal:
        """See Indicator.signal."""
        row = cursor.execute(_PENDING).fetchone()
        pending = row[0] if row else None
        if pending is None or pending <= number(subject.limit):
            return Fine()
        return Stop(f"{pending} WAL segments are waiting to be archived")
