"""Notices rows that changed without events, and has their tables read again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from infra.service import log
from infra.state.positions import FormState
from producers.publish.table_publisher import TableFeed
from producers.source.transactions import current_snapshot, next_xid
from producers.watch.table_forms import table_forms
from schemas.positions import Lsn


@dataclass(slots=True)
class _KeyChange:
    """A change by which rows have other keys, as it was first seen.

    Events of transactions below the 64-bit id `begun` may still have the old keys, and no later event takes those back.
    The stream has passed them all at `lsn`, which is None until these transactions have ended.
    """

    feed: TableFeed
    form: FormState
    begun: int
    lsn: Lsn | None = None


class FormWatch:
    """Compares what tables are made of with what is recorded of them; see producers.publish.silent_changes.

    Nothing of a table may be copied before its form was taken, so that a change during the copy differs from it.
    """

    def __init__(self, connection: psycopg.Connection[Any], lines: log.Log) -> None:
        self._connection = connection
        self._log = lines
        self._seen: list[tuple[TableFeed, FormState]] = []
        self._keys: dict[str, _KeyChange] = {}

    def look(self, feeds: Sequence[TableFeed]) -> None:
        """Read the catalog; `take` is to follow."""
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
            snapshot, lsn = current_snapshot(self._connection)
            for each in waiting:
                each.lsn = lsn if each.begun <= snapshot.xmin else None

    def differs(self, feed: TableFeed) -> bool:
        """Whether the next look will find a change of this table."""
        form = table_forms(self._connection, [feed.table.relation.oid]).get(feed.table.relation.oid)
        return form is not None and feed.silent_change(form) is not None

    def take(self, passed: Lsn) -> None:
        """Note what was seen, and what has to be read again, right before the tables' states are recorded.

        Not earlier: a copy waits for every transaction that began before it was asked for, and those that the stream
        passes from then on are noted. `passed` is how far the stream has come.
        """
        seen, self._seen = self._seen, []
        due = [each for each in self._keys.values() if each.lsn is not None and each.lsn <= passed]
        for each in due:
            del self._keys[each.feed.table.name]
        for feed, form in [*seen, *((each.feed, each.form) for each in due)]:
            restarting = feed.state.anew and feed.state.form.columns
            if feed.away or feed.state.stopped or restarting or not feed.state.form.differs(form):
                continue
            change = feed.take_form(form, next_xid(self._connection))
            if change is not None:
                self._log.warning(
                    "rows changed without events; the table is read again",
                    **{log.TABLE: feed.table.name, log.REASON: change.reason},
                    anew=change.keys,
                )
