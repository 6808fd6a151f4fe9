"""Comparisons of a table's key by the operators that its order goes by, each written with its schema.

`>` and `=` go by name, ORDER BY by the type's default operator class: of a type whose schema is not searched (citext)
the names are another type's (text's), and rows would be left out between two ranges, or not found. So both are written
out here, with the operators and the collation of the index that makes the key unique: by those no two rows are equal,
and a range may end at any row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

_SIGNS: Final = ("<", "<=", "=", ">=", ">")
"""In the order of btree's strategies, 1 to 5."""


@dataclass(frozen=True, slots=True)
class Operators:
    """How one column of a key is compared: by the operators of one btree operator class.

    `names` are (schema, name) of its operators for <, <=, =, >= and >. `collation` is (schema, name), and `collated`
    whether it is another than the column's own; `cast` is a type that values are cast to, where the operators take
    rows of every type. `in_bytes` tells whether integers sort as numbers, and all else as the bytes of its UTF-8 text.
    """

    names: tuple[tuple[str, str], ...] = tuple(("pg_catalog", sign) for sign in _SIGNS)
    collation: tuple[str, str] | None = None
    collated: bool = False
    cast: str | None = None
    in_bytes: bool = True

    def named(self, sign: str) -> sql.Composable:
        """Return the operator for one of <, <=, =, >=, >."""
        schema, name = self.names[_SIGNS.index(sign)]
        return sql.SQL("OPERATOR({}.{})").format(sql.Identifier(schema), sql.SQL(name))

    def column(self, column: sql.Composable) -> sql.Composable:
        """Return the column with the collation that it is compared by."""
        if self.collation is None or not self.collated:
            return column
        return sql.SQL("{} COLLATE {}").format(column, sql.Identifier(*self.collation))

    def value(self, value: sql.Composable) -> sql.Composable:
        """Return a value of the column, as the operators take it."""
        return sql.SQL("{}::{}").format(value, sql.SQL(self.cast)) if self.cast else value


# A domain's values compare as those of the type under it. Arrays, enums and ranges of whatever type have operators of
# PostgreSQL's own, and no operator class by their own name.
_BY_TYPE: Final = """
    WITH RECURSIVE types(attname, oid) AS (
        SELECT attname, atttypid FROM pg_catalog.pg_attribute
         WHERE attrelid = %(table)s AND attname = ANY(%(columns)s) AND attnum > 0 AND NOT attisdropped
        UNION ALL
        SELECT types.attname, t.typbasetype FROM types JOIN pg_catalog.pg_type t ON t.oid = types.oid
         WHERE t.typtype = 'd'
    )
    SELECT types.attname, array_agg(ARRAY[n.nspname, p.oprname]::text[] ORDER BY o.amopstrategy)
      FROM types
      JOIN pg_catalog.pg_opclass c ON c.opcintype = types.oid AND c.opcdefault
      JOIN pg_catalog.pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
      JOIN pg_catalog.pg_amop o ON o.amopfamily = c.opcfamily AND o.amoppurpose = 's'
                               AND o.amoplefttype = c.opcintype AND o.amoprighttype = c.opcintype
      JOIN pg_catalog.pg_operator p ON p.oid = o.amopopr
      JOIN pg_catalog.pg_namespace n ON n.oid = p.oprnamespace
     GROUP BY types.attname HAVING count(*) = 5
"""

# 950 is the collation C, 951 POSIX, 100 the database's own. In another encoding than UTF8 the server compares bytes
# that nobody else sees; in SQL_ASCII it has those of UTF-8, or of anything.
_BY_INDEX: Final = """
    WITH indexed AS (
        SELECT i.indexrelid, i.indrelid, i.indkey, i.indclass, i.indcollation, i.indnkeyatts
          FROM pg_catalog.pg_index i
          JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
          JOIN pg_catalog.pg_am m ON m.oid = x.relam AND m.amname = 'btree'
          JOIN LATERAL (SELECT array_agg(a.attname::text) AS names
                          FROM unnest(i.indkey) WITH ORDINALITY k(attnum, n)
                          JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                         WHERE k.n <= i.indnkeyatts) AS key ON true
         WHERE i.indrelid = %(table)s AND i.indisunique AND i.indisvalid AND i.indimmediate
           AND i.indpred IS NULL AND i.indexprs IS NULL
           AND key.names @> %(columns)s::text[] AND key.names <@ %(columns)s::text[]
         ORDER BY i.indisprimary DESC, i.indexrelid
         LIMIT 1
    )
    SELECT a.attname::text,
           (SELECT array_agg(ARRAY[n.nspname, p.oprname]::text[] ORDER BY o.amopstrategy)
              FROM pg_catalog.pg_amop o
              JOIN pg_catalog.pg_operator p ON p.oid = o.amopopr
              JOIN pg_catalog.pg_namespace n ON n.oid = p.oprnamespace
             WHERE o.amopfamily = c.opcfamily AND o.amoppurpose = 's'
               AND o.amoplefttype = c.opcintype AND o.amoprighttype = c.opcintype),
           CASE WHEN co.oid IS NOT NULL THEN ARRAY[con.nspname, co.collname]::text[] END,
           coalesce(co.oid <> a.attcollation, false),
           CASE WHEN c.opcintype = 'pg_catalog.record'::regtype THEN pg_catalog.format_type(a.atttypid, -1) END,
           fn.nspname = 'pg_catalog' AND (
               f.opfname IN ('integer_ops', 'oid_ops', 'uuid_ops')
               OR pg_catalog.pg_encoding_to_char(d.encoding) IN ('UTF8', 'SQL_ASCII')
                  AND (f.opfname = 'text_pattern_ops'
                       OR f.opfname = 'text_ops'
                          AND (co.oid IN (950, 951)
                               OR co.oid = 100 AND d.datcollate = 'C'
                                  AND coalesce(to_jsonb(d)->>'datlocprovider', 'c') = 'c')))
      FROM indexed i
      CROSS JOIN unnest(i.indkey) WITH ORDINALITY k(attnum, n)
      JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
      JOIN pg_catalog.pg_opclass c ON c.oid = i.indclass[k.n - 1]
      JOIN pg_catalog.pg_opfamily f ON f.oid = c.opcfamily
      JOIN pg_catalog.pg_namespace fn ON fn.oid = f.opfnamespace
      JOIN pg_catalog.pg_database d ON d.datname = current_database()
      LEFT JOIN pg_catalog.pg_collation co ON co.oid = i.indcollation[k.n - 1]
      LEFT JOIN pg_catalog.pg_namespace con ON con.oid = co.collnamespace
     WHERE k.n <= i.indnkeyatts
"""


def default_operators(connection: psycopg.Connection[Any], table: int, columns: Sequence[str]) -> tuple[Operators, ...]:
    """Return for each of `columns` of the table with oid `table` the operators of its type's default class."""
    found = connection.execute(_BY_TYPE, {"table": table, "columns": list(columns)}).fetchall()
    own = {column: Operators(_pairs(names)) for column, names in found}
    return tuple(own.get(column, Operators()) for column in columns)


def key_order(connection: psycopg.Connection[Any], table: int, key: Sequence[str]) -> tuple[Operators, ...] | None:
    """Return for each column of a key the operators of the index that makes it unique; None without such an index.

    `table` is an oid. Whether the columns may be null is left to the caller.
    """
    found = connection.execute(_BY_INDEX, {"table": table, "columns": list(key)}).fetchall()
    own = {
        column: Operators(_pairs(names), tuple(collation) if collation else None, collated, cast, in_bytes)
        for column, names, collation, collated, cast, in_bytes in found
        if len(names or ()) == len(_SIGNS)
    }
    return tuple(own[column] for column in key) if own.keys() == set(key) else None


def order_name(operators: Sequence[Operators]) -> str:
    """Return a text that is another one when rows sort otherwise; empty for PostgreSQL's own operators unasked."""
    named = (each.names[0] + (each.collation or ()) for each in operators)
    return ", ".join(" ".join(parts) for parts in named)


def ascending(columns: Sequence[sql.Composable], operators: Sequence[Operators]) -> sql.Composable:
    """Return what stands behind ORDER BY for rows in the order of `columns`."""
    return sql.SQL(", ").join(
        sql.SQL("{} USING {}").format(each.column(column), each.named("<"))
        for column, each in zip(columns, _all_of(columns, operators), strict=True)
    )


def compared(
    columns: Sequence[sql.Composable],
    sign: str,
    values: Sequence[sql.Composable],
    operators: Sequence[Operators] = (),
) -> sql.Composable:
    """Return the condition that the row of `columns` is before, after or at the row of `values`, in key order.

    `sign` is one of <, <=, =, >=, >. `operators` are one for each column; none: PostgreSQL's own. An index on the
    columns serves it.
    """
    chosen = _all_of(columns, operators)
    parts = [
        (each.column(column), each, each.value(value))
        for column, value, each in zip(columns, values, chosen, strict=True)
    ]
    if sign == "=":
        return _all(_one(*part, "=") for part in parts)
    if len({each.names for each in chosen}) == 1:
        row = sql.SQL("({})")
        return sql.SQL("{} {} {}").format(
            row.format(sql.SQL(", ").join(column for column, _, _ in parts)),
            chosen[0].named(sign),
            row.format(sql.SQL(", ").join(value for _, _, value in parts)),
        )
    # A row comparison has one operator for all columns; so it is spelt out, with a first condition for the index.
    strict = sign.rstrip("=")
    branches = [
        _all(
            [*(_one(*part, "=") for part in parts[:at]), _one(*parts[at], sign if at + 1 == len(parts) else strict)],
        )
        for at in range(len(parts))
    ]
    either = sql.SQL("({})").format(sql.SQL(" OR ").join(branches))
    return _all([_one(*parts[0], f"{strict}="), either])


def _pairs(names: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((schema, name) for schema, name in names)


def _all_of(columns: Sequence[sql.Composable], operators: Sequence[Operators]) -> tuple[Operators, ...]:
    return tuple(operators) or (Operators(),) * len(columns)


def _one(column: sql.Composable, operators: Operators, value: sql.Composable, sign: str) -> sql.Composable:
    return sql.SQL("{} {} {}").format(column, operators.named(sign), value)


def _all(conditions: Iterable[sql.Composable]) -> sql.Composable:
    return sql.SQL("({})").format(sql.SQL(" AND ").join(conditions))
