"""The publication of a source: the list of tables whose changes its slot decodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from producers.tables import CapturedTable

_PUBLISHED = "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = %s"


def ensure_publication(connection: psycopg.Connection[Any], name: str, tables: Sequence[CapturedTable]) -> bool:
    """Make publication `name` publish exactly `tables`; returns whether it had to be changed.

    The partitions of a partitioned table are published as the table itself.
    """
    with connection.transaction(), connection.cursor() as cursor:
        exists = cursor.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", (name,)).fetchone()
        published = {row[0] for row in cursor.execute(_PUBLISHED, (name,)).fetchall()}
        if exists and published == {table.name for table in tables}:
            return False
        listed = sql.SQL(", ").join(sql.Identifier(table.relation.schema, table.relation.table) for table in tables)
        statement = (
            sql.SQL("ALTER PUBLICATION {} SET TABLE {}")
            if exists
            else sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)")
        )
        cursor.execute(statement.format(sql.Identifier(name), listed))
    return True
