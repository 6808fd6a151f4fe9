"""The publication of a source: the list of tables whose changes its slot decodes, with that of their owners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from infra.control import OWNERSHIP
from producers.tables import CapturedTable
from schemas.errors import Refused

_PUBLICATION = """
SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AS whole, puballtables AS all_tables
FROM pg_publication WHERE pubname = %s
"""

# From the catalog itself: the view pg_publication_tables opens the tables, and waits for one that is locked. Before 15
# there is neither a list of columns nor a filter of rows, so those are looked for by name.
_TABLES = """
SELECT n.nspname || '.' || c.relname
FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = %s AND NOT (p.pubviaroot AND c.relkind = 'p')
  AND coalesce(to_jsonb(r) ->> 'prattrs', to_jsonb(r) ->> 'prqual') IS NULL
"""

_OPTIONS = sql.SQL("publish = 'insert, update, delete, truncate', publish_via_partition_root = false")
"""Each partition by itself: published as its table, it would tell neither its replica identity nor its truncates."""


class PublishesAllTables(Refused):
    """Choose another with databases.<name>.publication; headrace makes it."""


def published_tables(connection: psycopg.Connection[Any], name: str) -> frozenset[str] | None:
    """Return the tables (`schema.table`) whose changes publication `name` publishes whole; None: it does not exist.

    A table of which it leaves out rows or columns is none, and if it leaves out kinds of changes, there is none.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        publication = cursor.execute(_PUBLICATION, (name,)).fetchone()
        if publication is None:
            return None
    if not publication["whole"]:
        return frozenset()
    return frozenset(name for (name,) in connection.execute(_TABLES, (name,)))


def ensure_publication(connection: psycopg.Connection[Any], name: str, tables: Sequence[CapturedTable]) -> bool:
    """Make publication `name` publish exactly `tables`, every change of them; returns whether it had to be changed.

    With them the changes of owner, once headrace's own tables are there.

    Of a partitioned table each partition is published, under its own name. Raises PublishesAllTables.
    """
    with connection.transaction(), connection.cursor() as cursor:
        published = published_tables(connection, name)
        wanted = frozenset(table.name for table in tables)
        owned = cursor.execute("SELECT to_regclass('headrace.schema_ownership')").fetchone() != (None,)
        if published == (wanted | {".".join(OWNERSHIP)} if owned else wanted):
            return False
        row = cursor.execute(_PUBLICATION, (name,)).fetchone()
        if row is not None and row[1]:
            raise PublishesAllTables(f"publication {name} is one FOR ALL TABLES")
        listed = sql.SQL(", ").join(
            sql.SQL("{} {}").format(
                # What inherits from a table is another table; a partitioned one has its rows in its partitions.
                sql.SQL("" if table.partitioned else "ONLY"),
                sql.Identifier(table.relation.schema, table.relation.table),
            )
            for table in tables
        )
        if owned:
            listed += sql.SQL(", ONLY {}").format(sql.Identifier(*OWNERSHIP))
        identifier = sql.Identifier(name)
        if row is None:
            cursor.execute(sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH ({})").format(identifier, listed, _OPTIONS))
        else:
            cursor.execute(sql.SQL("ALTER PUBLICATION {} SET TABLE {}").format(identifier, listed))
            cursor.execute(sql.SQL("ALTER PUBLICATION {} SET ({})").format(identifier, _OPTIONS))
    return True
