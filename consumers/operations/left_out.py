"""Finds the columns of a migration whose large values the stream may leave out of its events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import psycopg

from infra.cli.advice import Advice

# The stream leaves out unchanged values in the TOAST table, unless the replica identity is FULL.
_LEFT_OUT: Final = """
WITH RECURSIVE part (oid) AS (
  SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
   WHERE n.nspname OPERATOR(pg_catalog.=) %s AND c.relname OPERATOR(pg_catalog.=) %s
  UNION ALL
  SELECT i.inhrelid FROM part p JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) p.oid
    JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) i.inhrelid AND c.relispartition)
SELECT DISTINCT a.attname::pg_catalog.text
  FROM part p JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) p.oid
  JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
 WHERE a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
   AND a.attstorage OPERATOR(pg_catalog.<>) 'p'::"char" AND a.attname OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.name[])
   AND c.relreplident OPERATOR(pg_catalog.<>) 'f'::"char" AND c.reltoastrelid OPERATOR(pg_catalog.<>) 0
   AND pg_catalog.pg_relation_size(c.reltoastrelid) OPERATOR(pg_catalog.>) 0
 ORDER BY 1
"""


def advise_of_left_out(
    connection: psycopg.Connection[Any], where: str, table: str, columns: Sequence[str]
) -> Iterator[Advice]:
    """Yield advice for a migration, at `where` in the settings, if events may lack values of `columns` of a table."""
    found = connection.execute(_LEFT_OUT, (*table.split(".", 1), list(columns))).fetchall()
    if found:
        names = ", ".join(name for (name,) in found)
        yield Advice(
            where,
            f"table {table} has large values: the event of an update that does not change them lacks them, and after"
            f" compaction a replay may never see them ({names})",
            (),
            "harmless if `decide` returns Change for UNCHANGED and `apply` reads the current row; for whole rows set"
            " complete_rows = true for its database (docs/reference/events.md), or run"
            f" ALTER TABLE {table} REPLICA IDENTITY FULL, and then headrace snapshot {table}",
        )
