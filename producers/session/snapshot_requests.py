"""What a producer makes of a request to re-snapshot a table: taken exactly once, or refused, and never its end.

A row of headrace.snapshot_requests is streamed in order with the data, and what it starts is recorded in the same Kafka
transaction as the position after it. One that cannot be done is refused: it changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, LiteralString, cast

import psycopg
from psycopg import pq, sql
from psycopg.adapt import Transformer
from pydantic import ValidationError

from infra.service import log
from infra.state.positions import SnapshotState
from infra.state.snapshot_requests import SnapshotRequest
from producers.publish.own_tables import Told
from producers.publish.table_publisher import TableFeed
from producers.snapshot.resnapshot_rules import KeyRange
from producers.source.tables import CapturedTable
from producers.source.transactions import next_xid
from schemas.errors import Refused

_TEXTS: Final = 1009
"""The type text[]."""

_KEY_BYTES: Final = 256 * 1024
"""What the keys of a request may take: they are recorded with the table's state."""

_TYPES: Final = """
SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
 WHERE a.attrelid OPERATOR(pg_catalog.=) %s AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
"""


class RequestRefused(Refused):
    """Nothing was changed. Correct it, and ask again with `headrace snapshot TABLE`."""


class Requests:
    """Takes the requests that the stream has brought, for a producer's session."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        feeds: Sequence[TableFeed],
        left_out: Mapping[str, SnapshotState],
        lines: log.Log,
        refused: str | None,
    ) -> None:
        """`left_out` are the tables that were stopped before the start; `refused` is what is recorded as such."""
        self._connection = connection
        self._feeds = feeds
        self._left_out = left_out
        self._log = lines
        self.refused = refused
        """Why the last request was refused, None when it was not; to be recorded with the position."""

    def take(self, row: Told) -> dict[str, SnapshotState]:
        """Note in its feed what was asked for; return what is to be recorded of a table that is left out.

        To be called once for each request, and its outcome recorded with the position after it.
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
        if request.anew and request.table in self._left_out:
            return {request.table: self._left_out[request.table].model_copy(update={"anew": True})}
        feed = next((feed for feed in self._feeds if feed.table.name == request.table), None)
        if feed is None:
            raise RequestRefused(f"table {request.table} was to be re-snapshot, and is not captured here")
        if feed.away:
            raise RequestRefused(f"table {request.table} was to be re-snapshot, and another database owns it now")
        if request.anew:
            feed.ask_anew()
        elif feed.state.stopped:
            raise RequestRefused(f"table {request.table} is stopped, and only --anew mends its topic")
        else:
            feed.ask(require_keys(self._connection, feed.table, request), next_xid(self._connection))
        self._log.info("re-snapshot requested", **{log.TABLE: request.table}, anew=request.anew)
        return {}


def read_request(row: Told) -> SnapshotRequest:
    """Return the request in a row; raises RequestRefused where it is none."""
    try:
        return SnapshotRequest.model_validate(
            {
                "table": (row["table"] or b"").decode(),
                "first": _key(row["first_key"]),
                "last": _key(row["last_key"]),
                "anew": row["anew"] == b"t",
            }
        )
    except (KeyError, UnicodeDecodeError, ValidationError, psycopg.Error) as error:
        raise RequestRefused("a row of headrace.snapshot_requests is no request") from error


def require_keys(connection: psycopg.Connection[Any], table: CapturedTable, request: SnapshotRequest) -> KeyRange:
    """Return the range that is asked for, its keys as the server writes them, so that ranges can be compared.

    Raises RequestRefused where an end of it is no key of the table. Waits for no lock on the table.
    """
    named = f"the key of {table.name} is ({', '.join(table.key)})"
    keys = [key for key in (request.first, request.last) if key is not None]
    for key in keys:
        if len(key) != len(table.key):
            raise RequestRefused(f"a key with {len(key)} value(s) was given, and {named}")
    if sum(len(text.encode()) for key in keys for text in key) > _KEY_BYTES:
        raise RequestRefused(f"a key of more than {_KEY_BYTES} bytes was given for {table.name}")
    if not keys:
        return KeyRange()
    types = dict(connection.execute(_TYPES, (table.relation.oid,)).fetchall())
    if not types.keys() >= set(table.key):
        raise RequestRefused(f"{named}, and the table has no such column any more")
    casts = [
        # The server's own words for the type, which it has quoted.
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
        raise RequestRefused(f"a key that is none of its columns' types was given, and {named}") from error
    texts = list(row or ())
    first = tuple(texts[: len(table.key)]) if request.first is not None else None
    return KeyRange(first, tuple(texts[-len(table.key) :]) if request.last is not None else None)


def _key(text: bytes | None) -> tuple[str, ...] | None:
    """Return an array's elements; an element that is null, or an array in it, is no text of a column."""
    if text is None:
        return None
    return tuple(Transformer().get_loader(_TEXTS, pq.Format.TEXT).load(text))
