"""Counts writes to tables that another database owns: they are in no topic.

The source's stream has the change of owner in order with the data: every later change of those tables is such a write,
and no earlier one. The counts are recorded with the position, so each change counts once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from infra.service import log, metrics
from infra.state.positions import StrayState, stray_key
from producers.publish.table_publisher import TableFeed
from producers.snapshot.resnapshot_rules import KeyRange
from producers.source.tables import CapturedTable
from schemas.events import Op


class Strays:
    """The counts of one source, by table."""

    def __init__(self, source: str, recorded: Mapping[str, StrayState], feeds: Iterable[TableFeed]) -> None:
        """Continue the recorded counts for those of `feeds` that are away; forget all other tables."""
        self._source = source
        self._counts = dict(recorded)
        self._changed: dict[str, StrayState | None] = {}
        self._log = log.get(**{log.SOURCE: source})
        self._logged: set[str] = set()
        for count in recorded.values():
            metrics.STRAY_WRITES.labels(source, count.table).set(count.writes)
        away = {feed.table.name: feed.table for feed in feeds if feed.away}
        for name in self._counts.keys() - away:
            self._end(name)
        for table in away.values():
            self.watch(table, time.time_ns() // 1_000_000)

    def watch(self, table: CapturedTable, since_ms: int) -> None:
        """Count the table's changes from here on, unless it is already counted."""
        if table.name not in self._counts:
            state = StrayState(
                source=self._source, table=table.name, gitlab_schema=table.gitlab_schema, since_ms=since_ms
            )
            self._set(state)

    def note(self, table: str, op: Op, ms: int, *, removes: bool) -> None:
        """Count a change committed at `ms`; with `removes`, it may have removed a key that the topic has."""
        if (count := self._counts.get(table)) is not None:
            name = {Op.CREATE: "inserts", Op.UPDATE: "updates", Op.DELETE: "deletes", Op.TRUNCATE: "truncates"}[op]
            more = {name: getattr(count, name) + 1, "last_ms": ms, "removes": count.removes or removes}
            self._set(count.model_copy(update=more))

    def missed(self, feeds: Iterable[TableFeed], moved: Collection[str], next_xid: Callable[[], int]) -> None:
        """Re-snapshot tables of gitlab schemas that came back, if they were written meanwhile.

        After a reverted move their topics lack those writes. `next_xid` returns the next transaction's id.
        """
        for feed in feeds if moved else ():
            if feed.away or feed.table.gitlab_schema not in moved:
                continue
            count = self._end(feed.table.name)
            if count is None or not count.writes:
                continue
            # A re-snapshot shows no removed key, and cannot start before the first snapshot is done.
            from_scratch = count.removes or not feed.state.done
            self._log.warning(
                "re-snapshotting table written while another database owned it",
                **{log.TABLE: feed.table.name},
                writes=count.writes,
                from_scratch=from_scratch,
            )
            if from_scratch:
                feed.ask_from_scratch()
            else:
                feed.ask(KeyRange(), next_xid())

    def records(self) -> Iterator[tuple[bytes, StrayState | None]]:
        """Yield the states to record with the position since the last call; None removes a table's record."""
        changed, self._changed = self._changed, {}
        for table, count in changed.items():
            writes = count.writes if count is not None else 0
            metrics.STRAY_WRITES.labels(self._source, table).set(writes)
            if writes and table not in self._logged:
                self._logged.add(table)
                self._log.warning("table written while another database owns it", **{log.TABLE: table}, writes=writes)
            yield stray_key(self._source, table), count

    def _end(self, table: str) -> StrayState | None:
        if table in self._counts:
            self._changed[table] = None
        return self._counts.pop(table, None)

    def _set(self, count: StrayState) -> None:
        self._counts[count.table] = self._changed[count.table] = count
