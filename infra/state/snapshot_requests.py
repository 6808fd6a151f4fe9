"""Sends requests to re-snapshot a table, or a range of its keys: rows of headrace.snapshot_requests.

The table is in the publication, so a request is streamed in order with the data and waits in the slot while no producer
runs; only headrace's role may write it. Consumers never write a table's topic: they ask its producer, which alone knows
the order of a row's events.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from pydantic import BaseModel, ConfigDict

_INSERT: Final = """
INSERT INTO headrace.snapshot_requests ("table", first_key, last_key, from_scratch) VALUES (%s, %s, %s, %s)
RETURNING id
"""
_DELETE: Final = "DELETE FROM headrace.snapshot_requests WHERE id OPERATOR(pg_catalog.=) %s"


class SnapshotRequest(BaseModel):
    """A request to re-snapshot the rows of `table` (`schema.table`) with keys from `first` to `last`, inclusive.

    A key is the texts of its columns; None means no bound. `from_scratch` empties the topic first and reads the whole
    table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str
    first: tuple[str, ...] | None = None
    last: tuple[str, ...] | None = None
    from_scratch: bool = False


def send_request(connection: psycopg.Connection[Any], request: SnapshotRequest) -> None:
    """Write the request, in a new transaction or the connection's; a duplicate reads the rows once more.

    The row is deleted at once: the stream contains it, and the table stays empty. Driver errors pass through.
    """
    ends = [None if key is None else list(key) for key in (request.first, request.last)]
    with connection.transaction():
        row = connection.execute(_INSERT, (request.table, *ends, request.from_scratch)).fetchone()
        assert row is not None
        connection.execute(_DELETE, row)
