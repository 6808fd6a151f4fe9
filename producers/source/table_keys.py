"""Reads columns, unique indexes and sort orders of tables from the catalog, all tables in a few queries.

A start needs them of every captured table: one query after the other for each of a thousand tables takes minutes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from infra.postgres.key_order import Operators, key_orders
from schemas.errors import PreflightFailed
from schemas.events import Column
from schemas.lazy_dataclass import dataclass

_COLUMNS: Final = """
SELECT a.attrelid::bigint AS oid, a.attname::text AS name, a.atttypid::bigint AS type_oid,
       a.atttypmod AS type_modifier, a.attgenerated <> '' AS generated
FROM pg_attribute a
WHERE a.attrelid = ANY(%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

_UNIQUE: Final = """
SELECT i.indrelid::bigint,
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY k(attnum, n)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE k.n <= i.indnkeyatts)
FROM pg_index i
WHERE i.indrelid = ANY(%s::oid[]) AND i.indisunique AND i.indisvalid AND i.indimmediate
  AND i.indpred IS NULL AND i.indexprs IS NULL
  AND NOT EXISTS (SELECT 1 FROM unnest(i.indkey) WITH ORDINALITY k(attnum, n)
                  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                  WHERE k.n <= i.indnkeyatts
                    AND (NOT a.attnotnull
                         OR EXISTS (SELECT FROM pg_constraint c
                                    WHERE c.conrelid = a.attrelid AND c.contype = 'n' AND NOT c.convalidated
                                      AND a.attnum = ANY(c.conkey))))
"""
"""Unique indexes over NOT NULL columns, without those of deferrable constraints: rows may swap keys in between.

A column whose NOT NULL constraint is NOT VALID (PostgreSQL 18) may be null in older rows.
"""

_NOT_VALIDATED: Final = """
SELECT a.attname::text, c.conname::text
FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY(c.conkey)
WHERE c.conrelid = %s AND c.contype = 'n' AND NOT c.convalidated AND a.attname = ANY(%s)
"""


class UnusableKey(PreflightFailed):
    """Give the table a primary key, or name unique not-null columns in databases.<name>.keys."""


@dataclass(frozen=True)
class TableKey:
    """What the catalog says of one table and its key.

    `columns` are those that are published, in the table's order; `generated` ones are not. `unique` are the columns of
    each index that may identify a row; `order` is None without such an index over the key.
    """

    columns: tuple[Column, ...]
    generated: frozenset[str]
    unique: frozenset[frozenset[str]]
    order: tuple[Operators, ...] | None


def read_columns(
    connection: psycopg.Connection[Any], oids: Collection[int]
) -> dict[int, tuple[tuple[Column, ...], frozenset[str]]]:
    """Return oid → published columns and names of generated ones; a table without a column is left out."""
    return ask_columns(connection, oids)()


def ask_columns(
    connection: psycopg.Connection[Any], oids: Collection[int]
) -> Callable[[], dict[int, tuple[tuple[Column, ...], frozenset[str]]]]:
    """Ask what `read_columns` returns; call the result once the connection's pipeline has ended."""
    cursor = connection.cursor(row_factory=dict_row)
    cursor.execute(_COLUMNS, (list(oids),))

    def answer() -> dict[int, tuple[tuple[Column, ...], frozenset[str]]]:
        columns: defaultdict[int, list[Column]] = defaultdict(list)
        generated: defaultdict[int, set[str]] = defaultdict(set)
        for each in cursor.fetchall():
            oid, is_generated = each.pop("oid"), each.pop("generated")
            if is_generated:
                generated[oid].add(each["name"])
            else:
                columns[oid].append(Column(**each))
        return {oid: (tuple(columns[oid]), frozenset(generated[oid])) for oid in {*columns, *generated}}

    return answer


def read_keys(connection: psycopg.Connection[Any], keys: Mapping[int, Sequence[str]]) -> dict[int, TableKey]:
    """Return oid → what the catalog says of each table with its key in `keys`."""
    oids = list(keys)
    columns = read_columns(connection, oids)
    orders = key_orders(connection, keys)
    unique: defaultdict[int, set[frozenset[str]]] = defaultdict(set)
    for oid, names in connection.execute(_UNIQUE, (oids,)):
        unique[oid].add(frozenset(names))
    return {oid: TableKey(*columns.get(oid, ((), frozenset())), frozenset(unique[oid]), orders[oid]) for oid in oids}


def order_of(
    connection: psycopg.Connection[Any], database: str, name: str, oid: int, key: Sequence[str], found: TableKey
) -> tuple[Operators, ...]:
    """Return the operators that compare the key of table `name`; raises UnusableKey if it is not a key."""
    if not key:
        raise UnusableKey(
            f"table {name} has neither a primary key nor a replica identity index",
            remedy=f"give it a primary key, name unique not-null columns in databases.{database}.keys, or leave it out"
            f" of databases.{database}.tables",
        )
    if left_out := [column for column in key if column in found.generated]:
        raise UnusableKey(
            f"key column {left_out[0]} of table {name} is generated, and generated columns are not captured"
        )
    columns = {column.name for column in found.columns}
    if unknown := [column for column in key if column not in columns]:
        raise UnusableKey(f"databases.{database}.keys names column {unknown[0]}, which table {name} does not have")
    if frozenset(key) in found.unique and found.order is not None:
        return found.order
    doubtful = connection.execute(_NOT_VALIDATED, (oid, list(key))).fetchone()
    if doubtful is not None:
        raise UnusableKey(
            f"key column {doubtful[0]} of table {name} has a NOT NULL constraint that is NOT VALID: rows may have null"
            " there",
            remedy=f'give those rows a value, then run ALTER TABLE {name} VALIDATE CONSTRAINT "{doubtful[1]}"',
        )
    raise UnusableKey(
        f"the key ({', '.join(key)}) of table {name} has no unique index over NOT NULL columns"
        " (a deferrable constraint's does not count)"
    )


def spread(topic: str, before: int, now: int) -> str:
    """Return why a table is stopped whose topic had `before` partitions and has `now`."""
    return (
        f"topic {topic} has {now} partitions, but the table's keys are spread over {before}: later changes of a row"
        " could go to another partition than earlier ones"
    )
