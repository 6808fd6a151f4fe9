"""Notices rows that changed without events, and has their tables read again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from infra import log
from infra.positions import FormState
from producers.feed import TableFeed
from producers.snapshot import next_xid
from producers.table_forms import table_forms


class FormWatch:
    """Compares what tables are made of with what is recorded of them; see producers.silent_changes.

    Nothing of a table may be copied before its form was taken, so that a change during the copy differs from it.
    """

    def __init__(self, connection: psycopg.Connection[Any], lines: log.Log) -> None:
        self._connection = connection
        self._log = lines
        self._seen: list[tuple[TableFeed, FormState]] = []

    def look(self, feeds: Sequence[TableFeed]) -> None:
        """Read the catalog; `take` is to follow."""
        forms = table_forms(self._connection, [feed.table.relation.oid for feed in feeds])
        read = ((feed, forms.get(feed.table.relation.oid)) for feed in feeds)
        self._seen = [(feed, form) for feed, form in read if form is not None]

    def take(self) -> None:
        """Note what was seen, and what has to be read again, right before the tables' states are recorded.

        Not earlier: a copy waits for every transaction that began before it was asked for, and those that the stream
        passes from then on are noted.
        """
        seen, self._seen = self._seen, []
        for feed, form in seen:
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
