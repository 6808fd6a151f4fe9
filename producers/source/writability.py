"""Finds tables that PostgreSQL would refuse to update while they are published.

UPDATE and DELETE of a published table require a replica identity, on each partition separately. From 18 on it must not
include an unpublished generated column, and virtual ones are never published: a table with one cannot be both published
and have replica identity FULL.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from producers.source.partitions import PARTITION_TREE
from schemas.errors import PreflightFailed

_REFUSED: Final = PARTITION_TREE + sql.SQL("""
SELECT tree.root::bigint AS oid, n.nspname || '.' || c.relname AS name, c.oid <> tree.root AS partition,
       c.relreplident = 'f' OR i.indexrelid IS NOT NULL AS identified, generated.virtual, generated.stored
FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.node AND c.relkind = 'r'
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
      AND i.indpred IS NULL AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END
CROSS JOIN LATERAL (
    SELECT pg_catalog.min(a.attname::text) FILTER (WHERE a.attgenerated = 'v') AS virtual,
           pg_catalog.min(a.attname::text) FILTER (WHERE a.attgenerated = 's') AS stored
    FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      AND pg_catalog.current_setting('server_version_num')::int >= 180000
      AND (c.relreplident = 'f' OR EXISTS (
           SELECT FROM pg_catalog.unnest(i.indkey) WITH ORDINALITY AS k(attnum, n)
           WHERE k.n <= i.indnkeyatts AND k.attnum = a.attnum))) AS generated
WHERE NOT (c.relreplident = 'f' OR i.indexrelid IS NOT NULL) OR generated.virtual IS NOT NULL
   OR (generated.stored IS NOT NULL AND EXISTS (
       SELECT FROM pg_catalog.pg_publication p
       WHERE p.pubname = %(publication)s AND to_jsonb(p) ->> 'pubgencols' <> 's'
         AND NOT pg_catalog.pg_has_role(p.pubowner, 'USAGE')))
ORDER BY 1, 2
""")
"""headrace makes its own publications publish stored generated columns (`producers.source.publication`)."""


class WritesRefused(PreflightFailed):
    """Give the table, and each partition, a primary key or REPLICA IDENTITY USING INDEX without generated columns."""


def refused_writes(connection: psycopg.Connection[Any], publication: str, oids: Collection[int]) -> dict[int, str]:
    """Return oid → why PostgreSQL would refuse UPDATE and DELETE of the table once `publication` has it."""
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(_REFUSED, {"oids": list(oids), "publication": publication}).fetchall()
    return {row["oid"]: _reason(row) for row in found}


def _reason(row: dict[str, Any]) -> str:
    whose = f"the replica identity of its partition {row['name']}" if row["partition"] else "its replica identity"
    if not row["identified"]:
        what = f"{whose} leaves out every column"
    elif row["virtual"] is not None:
        what = f"{whose} is full and includes virtual generated column {row['virtual']}"
    else:
        what = f"{whose} includes generated column {row['stored']}, which the publication of another role leaves out"
    return f"{what}: PostgreSQL refuses every UPDATE and DELETE of it while it is published"
