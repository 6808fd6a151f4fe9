"""Requests to re-snapshot a table, or a range of its keys: rows of headrace.snapshot_requests.

The table is in the publication, so a request is streamed in order with the data and waits in the slot while no producer
runs; and only headrace's role may write it. Consumers write no table's topic: they ask its producer, which alone knows
what order a row's events have.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from pydantic import BaseModel, ConfigDict

_INSERT: Final = """
INSERT INTO headrace.snapshot_requests ("table", first_key, last_key, anew) VALUES (%s, %s, %s, %s)
RETURNING id
"""
_DELETE: Final = "DELETE FROM headrace.snapshot_requests WHERE id OPERATOR(pg_catalog.=) %s"


class SnapshotRequest(BaseModel):
    """Read the rows of `table`, `schema.table`, with keys from `first` to `last`, both included, again.

    A key is the texts of its columns; None is the end of the key space. With `anew`, empty the topic first and read
    the whole table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str
    first: tuple[str, ...] | None = None
    last: tuple[str, ...] | None = None
    anew: bool = False


def send_request(connection: psycopg.Connection[Any], request: SnapshotRequest) -> None:
    """Write the request, in a transaction of its own or in the connection's; a duplicate reads the rows once more.

    The row is deleted at once: the stream has it, and the table stays empty. Driver errors pass through.
    """
    ends = [None if key is None else list(key) for key in (request.first, request.last)]
    with connection.transaction():
        row = connection.execute(_INSERT, (request.table, *ends, request.anew)).fetchone()
        assert row is not None
        connection.execute(_DELETE, row)
