"""Builds comparisons of a table's key with the schema-qualified operators of its order.

`>` and `=` resolve by name, ORDER BY by the type's default operator class: for a type whose schema is not in the
search_path (citext) the names resolve to another type's operators (text's), and rows between two ranges would be lost
or not found. So both are explicit here, with the operators and the collation of the unique index of the key: by those
no two rows are equal, and a range may end at any row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

from schemas.lazy_dataclass import dataclass

_SIGNS: Final = ("<", "<=", "=", ">=", ">")
"""In the order of btree strategies, 1 to 5."""


@dataclass(frozen=True)
class Operators:
    """The operators that compare one column of a key, from one btree operator class.

    `names` are (schema, name) of its operators for <, <=, =, >= and >. `collation` is (schema, name), and `collated`
    whether it differs from the column's own; `cast` is a type that values are cast to, if the operators accept any
    record type. `in_bytes`: integers sort as numbers, and everything else as the bytes of its UTF-8 text.
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
        """Return the column with its collation for comparisons."""
        if self.collation is None or not self.collated:
            return column
        return sql.SQL("{} COLLATE {}").format(column, sql.Identifier(*self.collation))

    def value(self, value: sql.Composable) -> sql.Composable:
        """Return a value of the column, cast for the operators if needed."""
        return sql.SQL("{}::{}").format(value, sql.SQL(self.cast)) if self.cast else value


# A domain compares like its base type. Arrays, enums and ranges of any type have PostgreSQL's polymorphic operators,
# and no operator class of their own.
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

# 950 is the collation C, 951 POSIX, 100 the database's default. In an encoding other than UTF8 the server compares
# bytes that clients do not see; in SQL_ASCII they are those of UTF-8, or arbitrary.
_BY_INDEX: Final = """
    WITH wanted AS (
        SELECT key.oid, array_agg(key.name) AS names
          FROM unnest(%(oids)s::oid[], %(names)s::text[]) AS key(oid, name)
         GROUP BY key.oid
    ), indexed AS (
        SELECT DISTINCT ON (i.indrelid)
               i.indexrelid, i.indrelid, i.indkey, i.indclass, i.indcollation, i.indnkeyatts
          FROM wanted w
          JOIN pg_catalog.pg_index i ON i.indrelid = w.oid
          JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
          JOIN pg_catalog.pg_am m ON m.oid = x.relam AND m.amname = 'btree'
          JOIN LATERAL (SELECT array_agg(a.attname::text) AS names
                          FROM unnest(i.indkey) WITH ORDINALITY k(attnum, n)
                          JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                         WHERE k.n <= i.indnkeyatts) AS key ON true
         WHERE i.indisunique AND i.indisvalid AND i.indimmediate
           AND i.indpred IS NULL AND i.indexprs IS NULL
           AND key.names @> w.names AND key.names <@ w.names
         ORDER BY i.indrelid, i.indisprimary DESC, i.indexrelid
    )
    SELECT i.indrelid::bigint, a.attname::text,
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
    """Return the operators of the types' default operator classes, for `columns` of the table with oid `table`."""
    found = connection.execute(_BY_TYPE, {"table": table, "columns": list(columns)}).fetchall()
    own = {column: Operators(_pairs(names)) for column, names in found}
    return tuple(own.get(column, Operators()) for column in columns)


def key_order(connection: psycopg.Connection[Any], table: int, key: Sequence[str]) -> tuple[Operators, ...] | None:
    """Return the operators of the key's unique index, one per column, None without such an index.

    `table` is an oid. The caller checks whether the columns may be null.
    """
    return key_orders(connection, {table: key})[table]


def key_orders(
    connection: psycopg.Connection[Any], keys: Mapping[int, Sequence[str]]
) -> dict[int, tuple[Operators, ...] | None]:
    """Return oid → what `key_order` returns, of all tables of `keys` (oid → key) in one query."""
    return ask_key_orders(connection, keys)()


def ask_key_orders(
    connection: psycopg.Connection[Any], keys: Mapping[int, Sequence[str]]
) -> Callable[[], dict[int, tuple[Operators, ...] | None]]:
    """Ask what `key_orders` returns; call the result once the connection's pipeline has ended."""
    pairs = [(oid, name) for oid, key in keys.items() for name in key]
    cursor = connection.execute(_BY_INDEX, {"oids": [oid for oid, _ in pairs], "names": [name for _, name in pairs]})

    def answer() -> dict[int, tuple[Operators, ...] | None]:
        own: dict[int, dict[str, Operators]] = {oid: {} for oid in keys}
        for oid, column, names, collation, collated, cast, in_bytes in cursor.fetchall():
            if len(names or ()) == len(_SIGNS):
                own[oid][column] = Operators(
                    _pairs(names), tuple(collation) if collation else None, collated, cast, in_bytes
                )
        return {
            oid: tuple(own[oid][column] for column in key) if key and own[oid].keys() == set(key) else None
            for oid, key in keys.items()
        }

    return answer


def order_name(operators: Sequence[Operators]) -> str:
    """Return a text that identifies the sort order; empty for no operators, PostgreSQL's defaults."""
    named = (each.names[0] + (each.collation or ()) for each in operators)
    return ", ".join(" ".join(parts) for parts in named)


def ascending(columns: Sequence[sql.Composable], operators: Sequence[Operators]) -> sql.Composable:
    """Return the ORDER BY expressions for rows in the order of `columns`."""
    return sql.SQL(", ").join(
        sql.SQL("{} USING {}").format(each.column(column), each.named("<"))
        for column, each in zip(columns, _all_of(columns, operators), strict=True)
    )


def among(column: sql.Composable, array: sql.Composable, operators: Sequence[Operators] = ()) -> sql.Composable:
    """Return the condition that a column equals an element of an array of its type; see `compared`."""
    (chosen,) = _all_of([column], operators)
    return sql.SQL("{} {} ANY ({})").format(chosen.column(column), chosen.named("="), array)


def compared(
    columns: Sequence[sql.Composable],
    sign: str,
    values: Sequence[sql.Composable],
    operators: Sequence[Operators] = (),
) -> sql.Composable:
    """Return the condition that compares the row of `columns` with the row of `values`, in key order.

    `sign` is one of <, <=, =, >=, >. `operators` has one entry per column, or none for PostgreSQL's defaults. An index
    on the columns supports the condition.
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
    # A row comparison has one operator for all columns: write it out, with a first condition for the index.
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
