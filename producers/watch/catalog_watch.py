"""Compares captured tables with the current catalog, and stops those that can no longer be followed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import psycopg
from psycopg.rows import dict_row

from infra.postgres.connect import asked_in_one_snapshot, one_snapshot
from infra.service import log
from infra.state.positions import SnapshotState
from producers.publish.table_publisher import TableFeed
from producers.source import gaps
from producers.source.publication import (
    Publication,
    PublicationOfAnotherRole,
    ask_publication,
    edited,
    lacking_own,
    put_back,
    read_publication,
    replaced,
    withdraw,
)
from producers.source.schema_changes import TableNow, TableStopped, current_obstacle
from producers.source.tables import UnreadableTable
from producers.source.writability import WritesRefused, refused_writes
from producers.watch.form_watch import FormWatch
from producers.watch.partition_watch import PartitionWatch
from schemas.positions import Lsn

_NOW = """
SELECT c.oid::bigint AS oid, n.nspname || '.' || c.relname AS name,
       (SELECT json_object_agg(a.attname, a.attnum) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '') AS numbers,
       (SELECT json_object_agg(a.attname, a.atttypid::bigint) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS types,
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
                          WHERE k.n <= i.indnkeyatts
                            AND (NOT a.attnotnull
                                 OR EXISTS (SELECT FROM pg_constraint n
                                            WHERE n.conrelid = a.attrelid AND n.contype = 'n' AND NOT n.convalidated
                                              AND a.attnum = ANY(n.conkey))))) AS unique_columns,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND NOT a.attisdropped AND a.attgenerated <> '') AS generated,
       has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE')
       AND NOT row_security_active(c.oid) AS readable,
       c.relnatts::int AS last
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY(%s)
"""


def tables_now(
    connection: psycopg.Connection[Any], publication: Publication | None, oids: Collection[int]
) -> dict[int, TableNow]:
    """Return oid → table for those that exist."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return _tables(cursor.execute(_NOW, (list(oids),)).fetchall(), publication)


def _tables(found: Iterable[dict[str, Any]], publication: Publication | None) -> dict[int, TableNow]:
    published = publication.tables if publication is not None else {}
    return {
        row["oid"]: TableNow(
            row["name"],
            row["numbers"] or {},
            frozenset(row["filled"]),
            frozenset(frozenset(columns) for columns in row["unique_columns"] or ()),
            row["name"] in published,
            row["types"] or {},
            frozenset(row["generated"]),
            row["readable"],
            row["last"],
        )
        for row in found
    }


class TableWatch:
    """Detects captured tables that were dropped, renamed, removed from the publication, or lost their key.

    The stream may be behind the catalog, so a table that can no longer be followed is stopped once the stream has
    passed the LSN read after that check; all events before it are published.
    """

    def __init__(self, connection: psycopg.Connection[Any], source: str, publication: str, lines: log.Log) -> None:
        self._connection = connection
        self._source = source
        self._publication = publication
        self._log = lines
        self._found: list[tuple[TableFeed, str]] = []
        self._ending: list[tuple[Lsn, TableFeed, str]] = []
        self._logged: set[str] = set()
        self._unwritable: set[str] = set()
        self._hidden: set[str] = set()
        self._without_own = False
        self._forms = FormWatch(connection, lines)
        self._partitions = PartitionWatch(connection, lines)

    def now(self, oid: int, connection: psycopg.Connection[Any] | None = None) -> TableNow | None:
        """Return one table; None if it was dropped. `connection` is another one than the watch's own."""
        connection = connection or self._connection
        cursor = connection.cursor(row_factory=dict_row)
        with asked_in_one_snapshot(connection):
            publication = ask_publication(connection, self._publication, [oid])
            cursor.execute(_NOW, ([oid],))
        return _tables(cursor.fetchall(), publication()).get(oid)

    def all_now(self, oids: Collection[int]) -> dict[int, TableNow]:
        """Return oid → table for those that exist."""
        with one_snapshot(self._connection):
            return tables_now(self._connection, read_publication(self._connection, self._publication), oids)

    def require(self, feed: TableFeed, connection: psycopg.Connection[Any]) -> None:
        """Raise TableStopped if the table, as it is now by this connection, cannot be followed. For any thread."""
        if (reason := current_obstacle(feed.table, self.now(feed.table.relation.oid, connection))) is not None:
            raise TableStopped(reason)

    def hides(self, feed: TableFeed) -> bool:
        """Whether the role may not read the table's rows now; the snapshot then waits until it may."""
        self._note_readable(feed, self.now(feed.table.relation.oid))
        return feed.hidden

    def differs(self, feed: TableFeed) -> bool:
        """Whether the table's form differs from the recorded one, which the next check handles."""
        return self._forms.differs(feed)

    def look(self, feeds: Iterable[TableFeed]) -> None:
        """Check the tables; to be called before a heartbeat, whose position is then passed to `noted`.

        Raises SilentGap if the publication was dropped, recreated or altered.
        """
        feeds = list(feeds)
        oids = [feed.table.relation.oid for feed in feeds]
        # Without one snapshot, a table moved to another schema and back could be missing from the publication's tables.
        with one_snapshot(self._connection):
            refused = refused_writes(self._connection, self._publication, oids)
            publication = read_publication(self._connection, self._publication)
            now = tables_now(self._connection, publication, oids)
        self._found = []
        self._lacking_own(publication)
        for feed in feeds:
            oid = feed.table.relation.oid
            self._note_readable(feed, now.get(oid))
            if oid in refused and publication is not None and feed.table.name in publication.tables:
                # Also a stopped table: the application's statements fail meanwhile.
                self._withdraw(feed, refused[oid])
            if feed.away or feed.state.stopped:
                continue
            published = feed.state.published
            if (what := replaced(published, publication)) is not None:
                raise gaps.publication_gap(self._source, self._publication, what)
            lacking = edited(published, feed.table.name, publication)
            if lacking is not None and oid in now:
                # Its remaining entry may have a filter that prevents updates of the table.
                withdraw(self._connection, self._publication, feed.table)
            if (reason := current_obstacle(feed.table, now.get(oid)) or lacking or refused.get(oid)) is not None:
                self._found.append((feed, reason))
        ending = [feed for feed, _ in self._found]
        live = [feed for feed in feeds if not feed.away and not feed.state.stopped and feed not in ending]
        self._forms.look(live)
        for feed, reason in self._partitions.look(live):
            # The reason may be a change of the whole table since the check above.
            now_of = self.now(feed.table.relation.oid)
            self._found.append((feed, current_obstacle(feed.table, now_of) or reason))

    def begin(self, feeds: Iterable[TableFeed]) -> None:
        """Compare the tables with their recorded forms, before anything is read or published."""
        self._forms.look([feed for feed in feeds if not feed.away and not feed.state.stopped])
        self._forms.take(Lsn(0))

    def noted(self, lsn: Lsn) -> None:
        """Note that everything seen by the last check is in the WAL before `lsn`."""
        self._ending += ((lsn, feed, reason) for feed, reason in self._found)
        self._found = []
        self._partitions.noted(lsn)

    @property
    def stream_lacks_partitions(self) -> bool:
        """Whether the stream has to restart, from its position, to get the changes of added partitions."""
        return self._partitions.lacks_added

    def passed(self, lsn: Lsn) -> bool:
        """Stop tables whose change the stream, at `lsn`, has passed; re-snapshot others that need it.

        To be called before the tables' states are recorded with that position: a re-snapshot waits for every
        transaction that the stream has passed by now. Returns whether routes of relations changed.
        """
        self._forms.take(lsn)
        ended = [(feed, reason) for at, feed, reason in self._ending if at <= lsn and not feed.state.stopped]
        for feed, reason in ended:
            if not feed.state.stopped:
                feed.stop(reason)
        self._ending = [each for each in self._ending if each[0] > lsn]
        return self._partitions.passed(lsn) or bool(ended)

    def _lacking_own(self, publication: Publication | None) -> None:
        """Put headrace's own tables back if they were removed from the publication.

        Without heartbeats an idle slot retains WAL, and requests made meanwhile are not in the stream.
        """
        if publication is None or not publication.whole or not (lacking := lacking_own(publication)):
            self._without_own = False
            return
        named = ", ".join(".".join(table) for table in lacking)
        if put_back(self._connection, self._publication, lacking):
            self._log.warning(
                "own tables put back into the publication",
                tables=named,
                remedy="send snapshot requests made meanwhile again",
            )
        elif not self._without_own:
            self._without_own = True
            self._log.error(
                "own tables are missing from the publication, so an idle slot retains WAL and requests do not arrive",
                tables=named,
                remedy=PublicationOfAnotherRole.__doc__,
            )

    def _withdraw(self, feed: TableFeed, reason: str) -> None:
        if withdraw(self._connection, self._publication, feed.table):
            self._log.warning("table removed from the publication", **{log.TABLE: feed.table.name, log.REASON: reason})
        elif feed.table.name not in self._unwritable:
            self._unwritable.add(feed.table.name)
            self._log.error(
                "table cannot be updated while published, and cannot be removed from the publication",
                **{log.TABLE: feed.table.name, log.REASON: reason},
                remedy=WritesRefused.__doc__,
            )

    def _hide(self, feed: TableFeed, reason: str) -> None:
        feed.hidden = True
        if feed.table.name not in self._hidden:
            self._hidden.add(feed.table.name)
            self._log.warning(
                "snapshot waits because the table may not be read",
                **{log.TABLE: feed.table.name, log.REASON: reason},
                remedy=UnreadableTable.__doc__,
            )

    def _note_readable(self, feed: TableFeed, now: TableNow | None) -> None:
        if now is not None and not now.readable:
            self._hide(feed, "a grant is missing, or row security hides rows")
            return
        feed.hidden = False
        self._hidden.discard(feed.table.name)

    def log_stopped(self, states: Iterable[SnapshotState]) -> None:
        """Log each stopped table once."""
        for state in states:
            if state.stopped and state.table not in self._logged:
                self._logged.add(state.table)
                self._log.error(
                    "table stopped",
                    **{log.TABLE: state.table, log.TOPIC: state.topic, log.REASON: state.stopped},
                    remedy=TableStopped.__doc__,
                )
