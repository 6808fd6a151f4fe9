"""Comparisons of a table's key by the operators that its order goes by, each written with its schema.

ORDER BY goes by the default operator class of a column's type, whatever the search path is. `>` and `=` go by name: a
type of an extension in a schema that is not searched (citext) is compared by another type's operators (text's), and
rows would be left out between two ranges, or not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

SYSTEM: Final = "pg_catalog"

# A domain's values compare as those of the type under it. Arrays, enums and ranges of whatever type have operators of
# PostgreSQL's own, and no operator class by their own name.
_SCHEMAS: Final = """
    WITH RECURSIVE types(attname, oid) AS (
        SELECT attname, atttypid FROM pg_catalog.pg_attribute
         WHERE attrelid = %(table)s AND attname = ANY(%(columns)s) AND attnum > 0 AND NOT attisdropped
        UNION ALL
        SELECT types.attname, t.typbasetype FROM types JOIN pg_catalog.pg_type t ON t.oid = types.oid
         WHERE t.typtype = 'd'
    )
    SELECT types.attname, n.nspname
      FROM types
      JOIN pg_catalog.pg_opclass c ON c.opcintype = types.oid AND c.opcdefault
      JOIN pg_catalog.pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
      JOIN pg_catalog.pg_amop o ON o.amopfamily = c.opcfamily AND o.amopstrategy = 1
                               AND o.amoplefttype = c.opcintype AND o.amoprighttype = c.opcintype
      JOIN pg_catalog.pg_operator p ON p.oid = o.amopopr
      JOIN pg_catalog.pg_namespace n ON n.oid = p.oprnamespace
"""


def operator_schemas(connection: psycopg.Connection[Any], table: int, columns: Sequence[str]) -> tuple[str, ...]:
    """Return for each of `columns` of the table with oid `table` the schema of the operators that it is ordered by."""
    found = connection.execute(_SCHEMAS, {"table": table, "columns": list(columns)}).fetchall()
    own = {column: schema for column, schema in found if schema != SYSTEM}
    return tuple(own.get(column, SYSTEM) for column in columns)


def compared(
    columns: Sequence[sql.Composable],
    operator: str,
    values: Sequence[sql.Composable],
    schemas: Sequence[str] = (),
) -> sql.Composable:
    """Return the condition that the row of `columns` is before, behind or at the row of `values`, in key order.

    `operator` is one of <, <=, =, >=, >. `schemas` are those of `operator_schemas`; none: PostgreSQL's own. An index
    on the columns serves it.
    """
    chosen = tuple(schemas) or (SYSTEM,) * len(columns)
    if operator == "=":
        return _all(_one(*each, "=") for each in zip(columns, values, chosen, strict=True))
    if len(set(chosen)) == 1:
        row = sql.SQL("({})")
        return sql.SQL("{} {} {}").format(
            row.format(sql.SQL(", ").join(columns)),
            _named(operator, chosen[0]),
            row.format(sql.SQL(", ").join(values)),
        )
    # A row comparison has one operator for all columns; so it is spelt out, with a first condition for the index.
    parts = list(zip(columns, values, chosen, strict=True))
    strict = operator.rstrip("=")
    branches = [
        _all(
            [*(_one(*each, "=") for each in parts[:at]), _one(*parts[at], operator if at + 1 == len(parts) else strict)]
        )
        for at in range(len(parts))
    ]
    either = sql.SQL("({})").format(sql.SQL(" OR ").join(branches))
    return _all([_one(*parts[0], f"{strict}="), either])


def _one(column: sql.Composable, value: sql.Composable, schema: str, operator: str) -> sql.Composable:
    return sql.SQL("{} {} {}").format(column, _named(operator, schema), value)


def _named(operator: str, schema: str) -> sql.Composable:
    return sql.SQL("OPERATOR({}.{})").format(sql.Identifier(schema), sql.SQL(operator))


def _all(conditions: Iterator[sql.Composable] | Sequence[sql.Composable]) -> sql.Composable:
    return sql.SQL("({})").format(sql.SQL(" AND ").join(conditions))
