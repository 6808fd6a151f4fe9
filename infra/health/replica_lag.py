"""The replication lag of standbys: readers of a lagging standby see old rows."""

from __future__ import annotations

from infra.health.indicator import Cursor, Fine, Indicator, Signal, Stop, Subject, number

# By WAL position, not by replay_lag, which does not grow while a standby replays nothing.
_BEHIND = """
    SELECT application_name, pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(replay_lsn, sent_lsn))::bigint
      FROM pg_stat_replication
     WHERE state IN ('streaming', 'catchup')
       AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = pid AND s.slot_type = 'logical')
     ORDER BY 2 DESC NULLS LAST LIMIT 1
"""


class ReplicaLag(Indicator):
    """Throttles when a standby has more than this many MB of WAL to replay, by default 256. Needs pg_monitor."""

    name = "replica_lag"
    default = 256
    sees_others = True

    def signal(self, cursor: Cursor, subject: Subject) -> Signal:
        """See Indicator.signal."""
        row = cursor.execute(_BEHIND).fetchone()
        if row is None or row[1] is None or row[1] <= number(subject.limit) * 1_000_000:
            return Fine()
        return Stop(f"standby {row[0]} is {row[1] / 1_000_000:,.0f} MB behind")
