"""Detects rows that changed without events, and re-snapshots their tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from infra.postgres.moments import current_moment, next_xid
from infra.service import log
from infra.state.positions import FormState
from producers.publish.table_publisher import TableFeed
from producers.watch.table_forms import table_forms
from schemas.positions import Lsn


@dataclass(slots=True)
class _KeyChange:
    """A detected change of rows' keys.

    Events of transactions below the 64-bit id `begun` may still have the old keys, and no later event removes those. At
    `lsn` the stream has passed them all; it is None until these transactions have ended.
    """

    feed: TableFeed
    form: FormState
    begun: int
    lsn: Lsn | None = None


class FormWatch:
    """Compares the forms of tables with the recorded ones; see producers.publish.silent_changes.

    No table may be copied before its form was recorded, so that a change during the copy differs from it.
    """

    def __init__(self, connection: psycopg.Connection[Any], lines: log.Log) -> None:
        self._connection = connection
        self._log = lines
        self._seen: list[tuple[TableFeed, FormState]] = []
        self._keys: dict[str, _KeyChange] = {}

    def look(self, feeds: Sequence[TableFeed]) -> None:
        """Read the catalog; call `take` next."""
        forms = table_forms(self._connection, [feed.table.relation.oid for feed in feeds])
        self._seen = []
        for feed in feeds:
            form = forms.get(feed.table.relation.oid)
            if form is None or feed.table.name in self._keys:
                continue
            change = feed.silent_change(form)
            if change is not None and change.keys:
                self._keys[feed.table.name] = _KeyChange(feed, form, next_xid(self._connection))
            else:
                self._seen.append((feed, form))
        waiting = [each for each in self._keys.values() if each.lsn is None]
        if waiting:
            moment = current_moment(self._connection)
            for each in waiting:
                each.lsn = moment.lsn if each.begun <= moment.snapshot.xmin else None

    def differs(self, feed: TableFeed) -> bool:
        """Whether the next check will find a change of this table."""
        form = table_forms(self._connection, [feed.table.relation.oid]).get(feed.table.relation.oid)
        return form is not None and feed.silent_change(form) is not None

    def take(self, passed: Lsn) -> None:
        """Record the forms seen, and request re-snapshots, right before the tables' states are recorded.

        Not earlier: a copy waits for every transaction that began before its request, and only transactions that the
        stream passes after it are noted. `passed` is the stream's position.
        """
        seen, self._seen = self._seen, []
        due = [each for each in self._keys.values() if each.lsn is not None and each.lsn <= passed]
        for each in due:
            del self._keys[each.feed.table.name]
        for feed, form in [*seen, *((each.feed, each.form) for each in due)]:
            restarting = feed.state.from_scratch and feed.state.form.columns
            if feed.away or feed.state.stopped or restarting or not feed.state.form.differs(form):
                continue
            change = feed.take_form(form, next_xid(self._connection))
            if change is not None:
                self._log.warning(
                    "rows changed without events, re-snapshotting table",
                    **{log.TABLE: feed.table.name, log.REASON: change.reason},
                    from_scratch=change.keys,
                )
