"""Putting a topic right: its producer is asked, through the source's own log, to read the rows that differ again.

Consumers write no table's topic: only the producer knows what order a row's events have. A request is a logical
message in JSON, `{"table", "first", "last"}` with the keys' columns as texts, both ends inclusive; it waits in the
slot while no producer runs.
"""

from __future__ import annotations

import json
from typing import Any, Final

import psycopg

from consumers.comparison import Comparison
from infra import postgres
from infra.settings import Settings

REQUEST_PREFIX: Final = "headrace.snapshot"
"""The prefix of the logical messages that ask for rows to be read again."""


def request_table(connection: psycopg.Connection[Any], table: str) -> None:
    """Ask for all rows of `table`, `schema.table`, within the connection's transaction."""
    request = {"table": table, "first": None, "last": None}
    connection.execute("SELECT pg_logical_emit_message(true, %s, %s::text)", (REQUEST_PREFIX, json.dumps(request)))


def request_repair(settings: Settings, found: Comparison) -> int:
    """Ask for every row that is missing in the topic or differs; return how many. A duplicate reads them once more.

    Rows that only the topic has stay there: a range read again shows no row for them.
    """
    keys = [*found.missing, *found.differing]
    dsn = settings.database(found.database).dsn.get_secret_value()
    with postgres.translated(dsn), postgres.connect(dsn, name=f"repair {found.table}") as connection:
        for key in keys:
            texts = [str(value) for value in key.values()]
            request = {"table": found.table, "first": texts, "last": texts}
            connection.execute(
                "SELECT pg_logical_emit_message(true, %s, %s::text)", (REQUEST_PREFIX, json.dumps(request))
            )
    return len(keys)
