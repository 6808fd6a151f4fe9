"""Reads a table's primary key from the catalog."""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg import sql

_PRIMARY_KEY: Final = """
SELECT a.attname::pg_catalog.text, pg_catalog.format_type(a.atttypid, a.atttypmod)
  FROM pg_catalog.pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(number, n), pg_catalog.pg_attribute a
 WHERE i.indrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%s) AND i.indisprimary
   AND a.attrelid OPERATOR(pg_catalog.=) i.indrelid AND a.attnum OPERATOR(pg_catalog.=) k.number
   AND k.n OPERATOR(pg_catalog.<=) i.indnkeyatts
 ORDER BY k.n
"""


def primary_key(connection: psycopg.Connection[Any], table: str) -> dict[str, str]:
    """Return column → type of the primary key of `table` (schema.table), in order; empty if it has none."""
    name = sql.Identifier(*table.split(".", 1)).as_string(connection)
    return dict(connection.execute(_PRIMARY_KEY, (name,)).fetchall())
