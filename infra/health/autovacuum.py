"""Autovacuum running on a table of the migration: it cannot remove rows that are rewritten meanwhile."""

from __future__ import annotations

from infra.health.indicator import Cursor, Fine, Indicator, Signal, Stop, Subject

_WORKERS = """
    SELECT a.query LIKE '%%(to prevent wraparound)%%', v.relid::regclass::text
      FROM pg_stat_progress_vacuum v JOIN pg_stat_activity a USING (pid)
     WHERE a.backend_type = 'autovacuum worker'
       AND v.relid IN (SELECT t.oid FROM unnest(%(tables)s::regclass[]) t(oid) UNION
                       SELECT p.relid FROM unnest(%(tables)s::regclass[]) t(oid), pg_partition_tree(t.oid) p)
"""


class Autovacuum(Indicator):
    """Throttles while an autovacuum worker is on a table of the migration, also one to prevent wraparound.

    Limit: true or false. Needs pg_monitor.
    """

    name = "autovacuum"
    default = True
    sees_others = True

    def signal(self, cursor: Cursor, subject: Subject) -> Signal:
        """See Indicator.signal."""
        row = cursor.execute(_WORKERS, {"tables": list(subject.tables)}).fetchone()
        if row is None:
            return Fine()
        return Stop(f"autovacuum is running on {row[1]}{' to prevent wraparound' if row[0] else ''}")
