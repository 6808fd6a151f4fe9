"""PostgreSQL privileges of a role: one list that an administrator grants and `headrace check` verifies.

producers/source/rights.py and consumers/operations/rights.py define the required privileges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from schemas.lazy_dataclass import dataclass

HEADRACE: Final = "headrace"
"""The schema of headrace's own tables."""

_LACKING: Final = """
SELECT wanted.place::int,
       NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
       ARRAY(SELECT each.privilege
               FROM pg_catalog.unnest(pg_catalog.string_to_array(wanted.privileges, ','))
                    WITH ORDINALITY AS each(privilege, number)
              WHERE NOT CASE WHEN each.privilege OPERATOR(pg_catalog.=) 'SELECT'
                             THEN pg_catalog.has_table_privilege(c.oid, 'SELECT')
                                  OR (SELECT pg_catalog.bool_and(
                                                 pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT'))
                                        FROM pg_catalog.pg_attribute a
                                       WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid
                                         AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped)
                             WHEN each.privilege OPERATOR(pg_catalog.=) ANY (ARRAY['INSERT', 'UPDATE'])
                             THEN pg_catalog.has_any_column_privilege(c.oid, each.privilege)
                             ELSE pg_catalog.has_table_privilege(c.oid, each.privilege) END
              ORDER BY each.number)
  FROM ROWS FROM (pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[]),
                  pg_catalog.unnest(%s::pg_catalog.text[])) WITH ORDINALITY AS wanted(schema, name, privileges, place)
  JOIN pg_catalog.pg_namespace n ON n.nspname OPERATOR(pg_catalog.=) wanted.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid
                            AND c.relname OPERATOR(pg_catalog.=) wanted.name
 ORDER BY wanted.place
"""


@dataclass(frozen=True)
class TablePrivileges:
    """The privileges that a role needs on one table, such as SELECT and UPDATE."""

    schema: str
    table: str
    privileges: tuple[str, ...]

    def __str__(self) -> str:
        """`SELECT, UPDATE on public.projects`."""
        return f"{', '.join(self.privileges)} on {self.schema}.{self.table}"


def grants(role: str, wanted: Iterable[TablePrivileges]) -> Iterator[str]:
    """Yield a GRANT for each table, and USAGE on each schema before its first table."""
    schemas = {HEADRACE}
    for each in wanted:
        if each.schema not in schemas:
            schemas.add(each.schema)
            yield _statement("GRANT USAGE ON SCHEMA {} TO {};", sql.Identifier(each.schema), sql.Identifier(role))
        yield _statement(
            f"GRANT {', '.join(each.privileges)} ON {{}} TO {{}};",
            sql.Identifier(each.schema, each.table),
            sql.Identifier(role),
        )


def lacking(connection: psycopg.Connection[Any], wanted: Sequence[TablePrivileges]) -> list[str]:
    """Return the privileges that the connection's role lacks, in GRANT syntax; missing tables are skipped.

    A privilege on some columns suffices: only the migration knows which columns it writes.
    """
    rows = connection.execute(
        _LACKING,
        (
            [each.schema for each in wanted],
            [each.table for each in wanted],
            [",".join(each.privileges) for each in wanted],
        ),
    )
    found: list[str] = []
    for place, closed, privileges in rows:
        each = wanted[place - 1]
        if closed and (usage := f"USAGE on schema {each.schema}") not in found:
            found.append(usage)
        if privileges:
            found.append(str(TablePrivileges(each.schema, each.table, tuple(privileges))))
    return found


def _statement(template: LiteralString, *parts: sql.Composable) -> str:
    return sql.SQL(template).format(*parts).as_string(None)
