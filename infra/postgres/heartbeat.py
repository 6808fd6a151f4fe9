"""Writes heartbeats: commits of headrace's own, so that the slot of an idle database can advance.

Written to a table, not as a logical message: a stream would then carry the messages of any role.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

from infra.postgres import table_format
from schemas.positions import Lsn, parse_lsn

_BEAT: Final = """
INSERT INTO headrace.heartbeat AS h (beaten_at) VALUES (pg_catalog.clock_timestamp())
ON CONFLICT (only_row) DO UPDATE SET beaten_at = excluded.beaten_at
RETURNING pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text,
          (SELECT d.format FROM headrace.database d), (SELECT d.format_by FROM headrace.database d)
"""


def beat(connection: psycopg.Connection[Any]) -> Lsn:
    """Write a heartbeat; return a position after every earlier commit, and at or before its own commit.

    Call it outside a transaction: every other heartbeat waits for its end. Raises NewerFormat when a newer
    headrace has upgraded the tables. Driver errors pass through.
    """
    row = connection.execute(_BEAT).fetchone()
    assert row is not None
    lsn, version, by = row
    table_format.known(version, by, connection.info.dbname)
    return parse_lsn(lsn)
