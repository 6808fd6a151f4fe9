"""Detects partitions that were added, removed or changed without WAL, none of which has an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from infra.postgres.moments import next_xid
from infra.service import log
from producers.publish.table_publisher import TableFeed
from producers.snapshot.resnapshot_rules import KeyRange
from producers.source.partitions import NOTICES_ATTACHED, Partitions, compared, kept_rows, obstacle, read_partitions
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn


@dataclass(frozen=True)
class _Seen:
    """The partitions of a table at one check; `doubtful` ones may have changes that are not in the WAL."""

    feed: TableFeed
    partitions: Partitions
    doubtful: frozenset[int]


class PartitionWatch:
    """Compares existing partitions with those whose rows are in the topic, and corrects the topic.

    As in producers.watch.catalog_watch.TableWatch, a check takes effect once the stream has passed the WAL position
    read after it. Until then the stream has the table's earlier state, and a new partition's earlier changes may belong
    to another table.
    """

    def __init__(self, connection: psycopg.Connection[Any], lines: log.Log) -> None:
        self._connection = connection
        self._log = lines
        self._found: list[_Seen] = []
        self._pending: list[tuple[Lsn, _Seen]] = []
        self._kept: dict[tuple[int, int], bool] = {}
        self.lacks_added = False
        """Whether the stream may lack changes of added partitions until it restarts."""

    def look(self, feeds: Sequence[TableFeed]) -> list[tuple[TableFeed, str]]:
        """Check the tables' partitions; return the tables that cannot be followed, each with the reason."""
        partitioned = {feed.table.relation.oid: feed for feed in feeds if feed.table.partitioned}
        now = read_partitions(self._connection, partitioned.keys())
        self._found = []
        ending: list[tuple[TableFeed, str]] = []
        for oid, feed in partitioned.items():
            ending += (
                (each, f"it is now a partition of {feed.table.name}, and its rows are in that topic")
                for each in feeds
                if each.table.relation.oid in now[oid].by_oid or each.table.relation.oid in now[oid].inner
            )
            if (reason := obstacle(now[oid].by_oid.values(), feed.table.key)) is not None:
                ending.append((feed, reason))
                continue
            try:
                self._compare(feed, now[oid])
            except (psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege):
                continue  # checked next time
        return ending

    def noted(self, lsn: Lsn) -> None:
        """Note that everything seen by the last check is in the WAL before `lsn`."""
        self._pending += ((lsn, seen) for seen in self._found)
        self._found = []

    def passed(self, lsn: Lsn) -> bool:
        """Correct the topics whose change the stream has passed; return whether there was one."""
        due = [seen for at, seen in self._pending if at <= lsn]
        self._pending = [each for each in self._pending if each[0] > lsn]
        for seen in due:
            if not seen.feed.state.stopped and not seen.feed.state.from_scratch and not seen.feed.away:
                self._follow(seen)
        return bool(due)

    def _compare(self, feed: TableFeed, now: Partitions) -> None:
        change = compared(feed.state.partitions, now)
        doubtful = frozenset(oid for oid in change.rewritten if not self._kept_rows(feed, oid, now.by_oid[oid].file))
        last = next((seen for _, seen in reversed(self._pending) if seen.feed is feed), None)
        if change.added or change.gone or change.rewritten:
            # Checks continue while the stream is behind, and a table may have ten thousand partitions.
            if last is None or (last.partitions.by_oid, last.doubtful) != (now.by_oid, doubtful):
                self._found.append(_Seen(feed, now, doubtful))
        elif last is None:
            feed.has_partitions(now)

    def _kept_rows(self, feed: TableFeed, partition: int, file: int) -> bool:
        if (partition, file) not in self._kept:
            self._kept[partition, file] = kept_rows(
                self._connection, feed.table.relation, partition, feed.state.partitions_seen
            )
        return self._kept[partition, file]

    def _follow(self, seen: _Seen) -> None:
        feed, now = seen.feed, seen.partitions
        change = compared(feed.state.partitions, now)
        names = {oid: partition.name for oid, partition in now.by_oid.items()}
        if change.gone or change.rewritten & seen.doubtful:
            self._log.warning(
                "partitions changed without events, re-snapshotting table from scratch",
                **{log.TABLE: feed.table.name},
                partitions=sorted(names.get(oid, str(oid)) for oid in change.gone | change.rewritten & seen.doubtful),
            )
            feed.ask_from_scratch()
            return
        feed.has_partitions(now)
        if change.added:
            self._log.info(
                "snapshotting rows of added partitions",
                **{log.TABLE: feed.table.name},
                partitions=sorted(names[oid] for oid in change.added),
            )
            self.lacks_added = self._connection.info.server_version < NOTICES_ATTACHED
            not_before = next_xid(self._connection)
            for oid in sorted(change.added):
                feed.ask(KeyRange(partition=oid), not_before)
