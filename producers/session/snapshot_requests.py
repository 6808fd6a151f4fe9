"""Handles requests to re-snapshot a table: each is accepted exactly once or refused, and never stops the producer.

A row of headrace.snapshot_requests is streamed in order with the data, and its outcome is recorded in the same Kafka
transaction as the position after it. A refused request changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, LiteralString, cast

import psycopg
from psycopg import sql

from infra.postgres.moments import next_xid
from infra.service import log
from infra.state.positions import SnapshotState
from infra.state.snapshot_requests import RequestRefused, RequestRow, SnapshotRequest, read_request
from producers.snapshot.resnapshot_rules import KeyRange
from producers.source.tables import CapturedTable

if TYPE_CHECKING:
    from producers.publish.table_publisher import TableFeed

_TYPES: Final = """
SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
 WHERE a.attrelid OPERATOR(pg_catalog.=) %s AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
"""


class Requests:
    """Handles the requests in the stream, for a producer's session."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        feeds: Sequence[TableFeed],
        left_out: Mapping[str, SnapshotState],
        lines: log.Log,
        refused: str | None,
    ) -> None:
        """`left_out` are the tables that were stopped before the start; `refused` is the recorded refusal."""
        self._connection = connection
        self._feeds = feeds
        self._left_out = left_out
        self._log = lines
        self.refused = refused
        """The reason why the last request was refused, None if it was accepted; recorded with the position."""

    def take(self, row: RequestRow) -> dict[str, SnapshotState]:
        """Pass a request to its table's feed; return the state to record for a table that is left out.

        To be called once per request; its outcome has to be recorded with the position after it.
        """
        try:
            changed = self._accept(read_request(row))
        except RequestRefused as refused:
            self.refused = refused.problem
            self._log.warning("snapshot request refused", **{log.REASON: refused.problem}, remedy=refused.remedy)
            return {}
        self.refused = None
        return changed

    def _accept(self, request: SnapshotRequest) -> dict[str, SnapshotState]:
        if request.from_scratch and request.table in self._left_out:
            return {request.table: self._left_out[request.table].model_copy(update={"from_scratch": True})}
        feed = next((feed for feed in self._feeds if feed.table.name == request.table), None)
        if feed is None:
            raise RequestRefused(f"cannot re-snapshot table {request.table}: it is not captured here")
        if feed.away:
            raise RequestRefused(f"cannot re-snapshot table {request.table}: another database owns it now")
        if request.from_scratch:
            feed.ask_from_scratch()
        elif feed.state.stopped:
            raise RequestRefused(f"table {request.table} is stopped, and only --from-scratch repairs its topic")
        else:
            feed.ask(require_keys(self._connection, feed.table, request), next_xid(self._connection))
        self._log.info("re-snapshot requested", **{log.TABLE: request.table}, from_scratch=request.from_scratch)
        return {}


def require_keys(connection: psycopg.Connection[Any], table: CapturedTable, request: SnapshotRequest) -> KeyRange:
    """Return the requested range, its keys in the server's own text form, so that ranges can be compared.

    Raises RequestRefused when a bound does not match the table's key. Waits for no lock on the table.
    """
    request.require_bounds(table.key)
    keys = request.bounds
    if not keys:
        return KeyRange()
    named = f"the key of {table.name} is ({', '.join(table.key)})"
    types = dict(connection.execute(_TYPES, (table.relation.oid,)).fetchall())
    if not types.keys() >= set(table.key):
        raise RequestRefused(f"{named}, but the table no longer has such a column")
    casts = [
        # format_type() returns the type already quoted.
        sql.SQL("CAST({} AS {})::pg_catalog.text").format(sql.Literal(text), sql.SQL(cast(LiteralString, types[name])))
        for key in keys
        for name, text in zip(table.key, key, strict=True)
    ]
    try:
        row = connection.execute(sql.SQL("SELECT {}").format(sql.SQL(", ").join(casts))).fetchone()
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        # Its message has the value, which may be a row's.
        raise RequestRefused(f"a key was given that does not match its columns' types, and {named}") from error
    texts = list(row or ())
    first = tuple(texts[: len(table.key)]) if request.first is not None else None
    return KeyRange(first, tuple(texts[-len(table.key) :]) if request.last is not None else None)
