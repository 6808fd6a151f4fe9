"""What PostgreSQL's catalog says now of the tables that are captured, and which of them have to be stopped for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import psycopg
from psycopg.rows import dict_row

from infra import log
from infra.positions import SnapshotState
from producers.feed import TableFeed
from producers.partition_watch import PartitionWatch
from producers.publication import published_tables
from producers.schema_changes import TableNow, TableStopped, standing_obstacle
from schemas.positions import Lsn

_NOW = """
SELECT c.oid::bigint AS oid, n.nspname || '.' || c.relname AS name,
       (SELECT json_object_agg(a.attname, a.attnum) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '') AS numbers,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
               AND (a.atthasdef OR a.atthasmissing OR a.attidentity <> '')) AS filled,
       (SELECT json_agg(ARRAY(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY k(attnum, n)
                              JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                              WHERE k.n <= i.indnkeyatts))
        FROM pg_index i
        WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
          AND i.indpred IS NULL AND i.indexprs IS NULL
          AND NOT EXISTS (SELECT 1 FROM unnest(i.indkey) WITH ORDINALITY k(attnum, n)
                          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                          WHERE k.n <= i.indnkeyatts AND NOT a.attnotnull)) AS unique_columns
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY(%s)
"""


def tables_now(connection: psycopg.Connection[Any], publication: str, oids: Collection[int]) -> dict[int, TableNow]:
    """Return oid → table for those that there are."""
    published = published_tables(connection, publication) or frozenset()
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(_NOW, (list(oids),)).fetchall()
    return {
        row["oid"]: TableNow(
            row["name"],
            row["numbers"] or {},
            frozenset(row["filled"]),
            frozenset(frozenset(columns) for columns in row["unique_columns"] or ()),
            row["name"] in published,
        )
        for row in found
    }


class TableWatch:
    """Notices what no event tells of captured tables: that one was dropped, renamed, left its publication or its key.

    The catalog is asked as it is now, where the stream may be behind; so a table that cannot be followed any more is
    stopped once the stream has passed the log position behind that look, and all events before it are published.
    """

    def __init__(self, connection: psycopg.Connection[Any], publication: str, lines: log.Log) -> None:
        self._connection = connection
        self._publication = publication
        self._log = lines
        self._found: list[tuple[TableFeed, str]] = []
        self._ending: list[tuple[Lsn, TableFeed, str]] = []
        self._told: set[str] = set()
        self._partitions = PartitionWatch(connection, lines)

    def now(self, oid: int) -> TableNow | None:
        """Return one table; None when it is gone."""
        return tables_now(self._connection, self._publication, [oid]).get(oid)

    def require(self, feed: TableFeed) -> None:
        """Raise TableStopped when the table, as it is now, cannot be followed."""
        if (reason := standing_obstacle(feed.table, self.now(feed.table.relation.oid))) is not None:
            raise TableStopped(reason)

    def look(self, feeds: Iterable[TableFeed]) -> None:
        """Look at the tables; to be called before a heartbeat, whose position `noted` then gets."""
        live = [feed for feed in feeds if not feed.away and not feed.state.stopped]
        now = tables_now(self._connection, self._publication, [feed.table.relation.oid for feed in live])
        reasons = ((feed, standing_obstacle(feed.table, now.get(feed.table.relation.oid))) for feed in live)
        self._found = [(feed, reason) for feed, reason in reasons if reason is not None]
        self._found += self._partitions.look(live)

    def noted(self, lsn: Lsn) -> None:
        """Everything that the last look saw is in the log before `lsn`."""
        self._ending += ((lsn, feed, reason) for feed, reason in self._found)
        self._found = []
        self._partitions.noted(lsn)

    def passed(self, lsn: Lsn) -> bool:
        """Stop the tables whose end the stream has passed, standing at `lsn`, and follow their partitions.

        Returns whether the changes of some relation go elsewhere from here on.
        """
        ended = [(feed, reason) for at, feed, reason in self._ending if at <= lsn and not feed.state.stopped]
        for feed, reason in ended:
            if not feed.state.stopped:
                feed.stop(reason)
        self._ending = [each for each in self._ending if each[0] > lsn]
        return self._partitions.passed(lsn) or bool(ended)

    def tell(self, states: Iterable[SnapshotState]) -> None:
        """Log the tables that are stopped, each once."""
        for state in states:
            if state.stopped and state.table not in self._told:
                self._told.add(state.table)
                self._log.error(
                    "table stopped; the others go on",
                    **{log.TABLE: state.table, log.TOPIC: state.topic, log.REASON: state.stopped},
                    remedy=TableStopped.__doc__,
                )
