"""What PostgreSQL's catalog says now of the tables that are captured."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import psycopg
from psycopg.rows import dict_row

from producers.publication import published_tables
from producers.schema_changes import TableNow

_NOW = """
SELECT c.oid::bigint AS oid, n.nspname || '.' || c.relname AS name,
       (SELECT json_object_agg(a.attname, a.attnum) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '') AS numbers,
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
               AND (a.atthasdef OR a.atthasmissing OR a.attidentity <> '')) AS filled,
       (SELECT json_agg(ARRAY(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY k(attnum, n)
                              JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                              WHERE k.n <= i.indnkeyatts))
        FROM pg_index i
        WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
          AND i.indpred IS NULL AND i.indexprs IS NULL
          AND NOT EXISTS (SELECT 1 FROM unnest(i.indkey) WITH ORDINALITY k(attnum, n)
                          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                          WHERE k.n <= i.indnkeyatts AND NOT a.attnotnull)) AS unique_columns
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY(%s)
"""


def tables_now(connection: psycopg.Connection[Any], publication: str, oids: Collection[int]) -> dict[int, TableNow]:
    """Return oid → table for those that there are."""
    published = published_tables(connection, publication) or frozenset()
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(_NOW, (list(oids),)).fetchall()
    return {
        row["oid"]: TableNow(
            row["name"],
            row["numbers"] or {},
            frozenset(row["filled"]),
            frozenset(frozenset(columns) for columns in row["unique_columns"] or ()),
            row["name"] in published,
        )
        for row in found
    }
