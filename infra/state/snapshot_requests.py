"""Writes and reads requests to re-snapshot a table, or a range of its keys: rows of headrace.snapshot_requests.

The table is in the publication, so a request is streamed in order with the data and waits in the slot while no producer
runs; only headrace's role may write it. Consumers never write a table's topic: they ask its producer, which alone knows
the order of a row's events. infra/postgres/control.sql creates the table, and `control.REQUESTS` is its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import Refused

_INSERT: Final = """
INSERT INTO headrace.snapshot_requests ("table", first_key, last_key, from_scratch) VALUES (%s, %s, %s, %s)
RETURNING id
"""
_DELETE: Final = "DELETE FROM headrace.snapshot_requests WHERE id OPERATOR(pg_catalog.=) %s"
_TEXTS: Final = 1009
"""The type text[]."""

_KEY_BYTES: Final = 256 * 1024
"""The largest size of a request's keys, which are recorded with the table's state."""

RequestRow = Mapping[str, bytes | None]
"""A row of the table from the stream: column → text."""


class RequestRefused(Refused):
    """Nothing was changed. Correct the request and repeat it with `headrace snapshot TABLE`."""


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

    @property
    def bounds(self) -> list[tuple[str, ...]]:
        """The keys that were given: the first, then the last."""
        return [key for key in (self.first, self.last) if key is not None]

    def require_bounds(self, key: Sequence[str]) -> None:
        """Raise RequestRefused unless each bound has a value for each column of the table's `key`, of a limited size.

        Only the database knows whether the values are of the columns' types.
        """
        for bound in self.bounds:
            if len(bound) != len(key):
                raise RequestRefused(
                    f"a key with {len(bound)} value(s) was given, but the key of {self.table} is ({', '.join(key)})"
                )
        if sum(len(text.encode()) for bound in self.bounds for text in bound) > _KEY_BYTES:
            raise RequestRefused(f"a key of more than {_KEY_BYTES} bytes was given for {self.table}")


def send_request(connection: psycopg.Connection[Any], request: SnapshotRequest) -> None:
    """Write the request, in a new transaction or the connection's; a duplicate reads the rows once more.

    The row is deleted at once: the stream contains it, and the table stays empty. Driver errors pass through.
    """
    ends = [None if key is None else list(key) for key in (request.first, request.last)]
    with connection.transaction():
        row = connection.execute(_INSERT, (request.table, *ends, request.from_scratch)).fetchone()
        assert row is not None
        connection.execute(_DELETE, row)


def read_request(row: RequestRow) -> SnapshotRequest:
    """Return the request in a row; raises RequestRefused for an invalid row."""
    try:
        return SnapshotRequest.model_validate(
            {
                "table": (row["table"] or b"").decode(),
                "first": _key(row["first_key"]),
                "last": _key(row["last_key"]),
                "from_scratch": row["from_scratch"] == b"t",
            }
        )
    except (KeyError, UnicodeDecodeError, ValidationError, psycopg.Error) as error:
        raise RequestRefused("a row of headrace.snapshot_requests is not a valid request") from error


def _key(text: bytes | None) -> tuple[str, ...] | None:
    """Return an array's elements; the request's model rejects a null or nested element."""
    if text is None:
        return None
    return tuple(Transformer().get_loader(_TEXTS, pq.Format.TEXT).load(text))
