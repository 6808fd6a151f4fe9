"""A request to read a table again, told to its producer through the source's own log.

A logical message is streamed in order with the data, waits in the slot while no producer runs, and is taken exactly
once: what it starts is recorded in the same Kafka transaction as the position behind it.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from pydantic import BaseModel, ConfigDict, ValidationError

from producers.reread import KeyRange, Texts
from schemas.positions import Lsn, parse_lsn

REQUEST_PREFIX: Final = "headrace.snapshot"
"""The prefix of the logical messages that carry requests."""


class SnapshotRequest(BaseModel):
    """Read the rows of `table` with keys from `first` to `last` again; `anew`, empty its topic first and read all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str
    first: Texts | None = None
    last: Texts | None = None
    anew: bool = False

    @property
    def range(self) -> KeyRange:
        """The keys to be read."""
        return KeyRange(self.first, self.last)


def send_request(connection: psycopg.Connection[Any], request: SnapshotRequest) -> Lsn:
    """Write the request into the log of the connected database; return its position."""
    query = "SELECT pg_logical_emit_message(true, %s, %s::text)::text"
    row = connection.execute(query, (REQUEST_PREFIX, request.model_dump_json())).fetchone()
    assert row is not None
    return parse_lsn(row[0])


def read_request(content: bytes) -> SnapshotRequest | None:
    """Return the request in a logical message; None where it is none, since anybody may write such a message."""
    try:
        return SnapshotRequest.model_validate_json(content)
    except ValidationError:
        return None
