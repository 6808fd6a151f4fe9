"""Resolves the tables that a source captures, with gitlab schema, topic and key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import field
from fnmatch import fnmatchcase
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from infra.postgres.connect import one_line
from infra.postgres.key_order import Operators
from infra.postgres.parameters import encoding_of
from infra.settings.model import DatabaseSettings
from infra.settings.table_labels import TableLabels
from infra.settings.table_patterns import divided, matches
from producers.source import partitions
from producers.source.partitions import Partitions
from producers.source.table_keys import TableKey, ask_columns, order_of, read_keys
from schemas.errors import PreflightFailed
from schemas.events import Column, Relation
from schemas.lazy_dataclass import dataclass
from schemas.topics import table_topic

_INTEGERS: Final = frozenset({20, 21, 23, 26})
_UUID: Final = 2950
_TEXTS: Final = frozenset({25, 1043})

_TABLES = """
SELECT c.oid::bigint AS oid, n.nspname AS schema, c.relname AS "table", c.relreplident AS replica_identity,
       c.relispartition AS is_partition, c.relkind = 'p' AS partitioned,
       ARRAY(SELECT relid::bigint FROM pg_partition_ancestors(c.oid)) AS ancestors,
       has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE') AS readable,
       row_security_active(c.oid) AS filtered,
       coalesce(i.indimmediate, true) AS immediate,
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY k(attnum, n)
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
             WHERE k.n <= i.indnkeyatts ORDER BY k.n) AS primary_key,
       ARRAY(SELECT a.attname::text FROM unnest(r.indkey) WITH ORDINALITY k(attnum, n)
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
             WHERE k.n <= r.indnkeyatts ORDER BY k.n) AS identity_index,
       greatest(c.reltuples, 0)::bigint AS estimated_rows
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
LEFT JOIN pg_index r ON r.indrelid = c.oid AND r.indisreplident
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'headrace') AND n.nspname NOT LIKE 'pg\\_%'
ORDER BY 2, 3
"""

_IS_CALLED = """
SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = %s AND n.nspname = %s AND c.relname = %s
"""


class MissingTable(PreflightFailed):
    """Create it, or correct databases.<name>.tables in the settings."""


class UnusableName(PreflightFailed):
    """Rename it, or remove the table from databases.<name>.tables."""


class PartitionTwice(PreflightFailed):
    """Remove the partition from databases.<name>.tables: its rows are published as those of the partitioned table."""


class UnfollowedPartition(PreflightFailed):
    """Detach the partition, or make it logged (SET LOGGED) with a replica identity that includes the key."""


class UnreadableTable(PreflightFailed):
    """GRANT SELECT on the table, and USAGE on its schema, to the role of the dsn."""


class IncompleteIdentity(PreflightFailed):
    """Run ALTER TABLE … REPLICA IDENTITY FULL (or USING INDEX), so that deletes carry the row's key."""


@dataclass(frozen=True)
class CapturedTable:
    """A captured table.

    `ordered`: this process can compare its keys as the database sorts them (integers, uuids, text in byte order). A
    table whose keys it cannot compare is copied by producers.snapshot.resnapshot_rules. The rows of a `partitioned`
    table are in its partitions; tables that merely inherit from it are separate.
    """

    relation: Relation
    gitlab_schema: str
    topic: str
    key: tuple[str, ...]
    ordered: bool
    estimated_rows: int = field(compare=False, default=0)
    partitioned: bool = False
    order: tuple[Operators, ...] = field(compare=False, default=())
    """The operators that compare each key column; empty: PostgreSQL's defaults."""
    encoding: str = field(compare=False, default="UTF8")
    """PostgreSQL's name of the database's encoding."""
    hidden: UnreadableTable | None = field(compare=False, default=None)
    """Why the role may not read its rows now, None if it may; the stream has its changes either way."""
    partitions: Partitions = field(compare=False, default_factory=Partitions)
    """Its partitions before any row was read."""
    database: str = field(compare=False, default="")
    """PostgreSQL's name of the database."""
    upserts: bool = field(compare=False, default=False)
    """Whether an update without a whole old row is published as `r`."""

    @property
    def name(self) -> str:
        """`schema.table`."""
        return self.relation.qualified_name

    @property
    def whole_old_rows(self) -> bool:
        """Whether the WAL has the whole old row of each update and delete."""
        if self.partitioned:
            return all(each.identity is None for each in self.partitions.by_oid.values())
        return self.relation.replica_identity == "f"


def captured_tables(
    connection: psycopg.Connection[Any],
    database: str,
    settings: DatabaseSettings,
    prefix: str,
    *,
    leave_out: Collection[str] = (),
) -> tuple[CapturedTable, ...]:
    """Return the connected database's tables that the settings capture, without `leave_out`, sorted by name.

    Raises a PreflightFailed naming a table that is missing, has no usable key or name, or a replica identity without
    its key, and UnmappedTable naming all that have no gitlab schema.
    """
    try:
        with connection.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(_TABLES).fetchall()
    except psycopg.errors.CharacterNotInRepertoire as error:
        problem = f"the name of a schema, a table or a column of a key is not UTF-8: {one_line(error)}"
        raise UnusableName(problem) from error
    by_name = {f"{each['schema']}.{each['table']}": each for each in found}
    patterns = tuple(pattern for pattern in settings.tables if pattern not in leave_out)
    chosen = sorted(set(_chosen(patterns, by_name, database)) - set(leave_out))
    for pattern in settings.upsert_tables:
        if not any(matches(name, *divided((pattern,))) for name in {*chosen, *leave_out}):
            raise MissingTable(
                f"databases.{database}.upsert_tables names {pattern}, but no such table is captured",
                remedy=f"correct it, or add the table to databases.{database}.tables",
            )
    for each in found:
        # Names are `schema.table` everywhere else, and schema a with table "b.c" would have the same one.
        if "." in each["schema"] and (name := f"{each['schema']}.{each['table']}") in chosen:
            raise UnusableName(f"table {name} is in schema {each['schema']}, whose name has a dot")
    captured = {by_name[name]["oid"]: name for name in chosen}
    for name in chosen:
        table = by_name[name]
        for oid in table["ancestors"]:
            if oid in captured and oid != table["oid"]:
                raise PartitionTwice(f"table {name} is a partition of {captured[oid]}, which is captured too")
    labels = TableLabels(database, settings).of_all(chosen)
    described = _described(connection, {name: by_name[name] for name in chosen}, settings)
    return tuple(
        _captured(connection, name, by_name[name], database, prefix, labels[name], described[name]) for name in chosen
    )


@dataclass(frozen=True)
class _Described:
    """A table's key, what the catalog says of it, its partitions, which were read before, and its `upserts`."""

    key: tuple[str, ...]
    found: TableKey
    partitions: Partitions
    upserts: bool


def _described(
    connection: psycopg.Connection[Any], chosen: Mapping[str, Mapping[str, Any]], settings: DatabaseSettings
) -> dict[str, _Described]:
    """Return table → description, of all in a few queries."""
    keys = {
        table["oid"]: settings.keys.get(name) or tuple(table["primary_key"]) or tuple(table["identity_index"])
        for name, table in chosen.items()
    }
    parts = partitions.read_partitions(connection, [each["oid"] for each in chosen.values() if each["partitioned"]])
    found = read_keys(connection, keys)
    return {
        name: _Described(keys[oid], found[oid], parts.get(oid, Partitions()), settings.upserts(name))
        for name, oid in ((name, table["oid"]) for name, table in chosen.items())
    }


def ask_relation(connection: psycopg.Connection[Any], oid: int, like: Relation) -> Callable[[], Relation | None]:
    """Ask for the table's columns as this transaction sees them; None if it was dropped or renamed.

    Call the result once the connection's pipeline has ended.
    """
    called = connection.execute(_IS_CALLED, (oid, like.schema, like.table))
    described = ask_columns(connection, [oid])

    def answer() -> Relation | None:
        columns, _ = described().get(oid, ((), frozenset()))
        if called.fetchone() is None or not columns:
            return None
        return Relation(oid, like.schema, like.table, like.replica_identity, columns, like.identity_columns)

    return answer


def _chosen(patterns: tuple[str, ...], by_name: Mapping[str, dict[str, Any]], database: str) -> Iterator[str]:
    _, wildcards = divided(patterns)
    for pattern in patterns:
        # A partition's rows are published as its root's; it is captured by itself only if named in full.
        matching = [pattern] if pattern in by_name else []
        if pattern in wildcards:
            matching += [
                name for name, table in by_name.items() if fnmatchcase(name, pattern) and not table["is_partition"]
            ]
        if not matching:
            raise MissingTable(
                f"databases.{database}.tables names {pattern}, but the database has no such ordinary table"
            )
        yield from matching


def _captured(
    connection: psycopg.Connection[Any],
    name: str,
    table: Mapping[str, Any],
    database: str,
    prefix: str,
    gitlab_schema: str,
    described: _Described,
) -> CapturedTable:
    key, found, parts_now = described.key, described.found, described.partitions
    replica_identity, identity = table["replica_identity"], _identity(table)
    if table["partitioned"]:
        # It has no rows; each partition has its own identity.
        has_key = table["immediate"] and set(key) <= set(table["primary_key"])
        replica_identity, identity = ("d", tuple(table["primary_key"])) if has_key else ("f", None)
    order = order_of(connection, database, name, table["oid"], key, found)
    if identity is not None and (hidden := [column for column in key if column not in identity]):
        raise IncompleteIdentity(f"the replica identity of table {name} leaves out key column {hidden[0]}")
    if (reason := partitions.obstacle(parts_now.by_oid.values(), key)) is not None:
        raise UnfollowedPartition(f"table {name} cannot be followed: {reason}")
    relation = Relation(
        table["oid"],
        table["schema"],
        table["table"],
        replica_identity,
        found.columns,
        tuple(column.name for column in found.columns if identity is None or column.name in identity),
    )
    return CapturedTable(
        relation,
        gitlab_schema,
        table_topic(prefix, gitlab_schema, database, table["schema"], table["table"]),
        key,
        _all_comparable(found.columns, key, order),
        table["estimated_rows"],
        table["partitioned"],
        order,
        encoding_of(connection),
        _hidden(name, table),
        parts_now,
        connection.info.dbname,
        described.upserts,
    )


def _hidden(name: str, table: Mapping[str, Any]) -> UnreadableTable | None:
    if not table["readable"]:
        schema = table["schema"]
        return UnreadableTable(
            f"table {name} may not be read by this role",
            remedy=f"GRANT SELECT ON {name} to the role of the dsn, and USAGE ON SCHEMA {schema}",
        )
    if table["filtered"]:
        return UnreadableTable(
            f"table {name} has row security, which hides rows from this role",
            remedy="give the role of the dsn BYPASSRLS",
        )
    return None


def _identity(table: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the columns that an old tuple has; None for all."""
    match table["replica_identity"]:
        case "f":
            return None
        case "i":
            return tuple(table["identity_index"])
        case "d":
            return tuple(table["primary_key"]) if table["immediate"] else ()
        case _:
            return ()


def _all_comparable(columns: Sequence[Column], key: tuple[str, ...], order: tuple[Operators, ...]) -> bool:
    types = {column.name: column.type_oid for column in columns}
    return all(
        operators.in_bytes and types[name] in {*_INTEGERS, _UUID, *_TEXTS}
        for name, operators in zip(key, order, strict=True)
    )


def comparable_key(table: CapturedTable, texts: tuple[bytes, ...]) -> tuple[int | bytes, ...]:
    """Return a key's texts in a form that compares as the database sorts it."""
    types = {column.name: column.type_oid for column in table.relation.columns}
    return tuple(int(text) if types[name] in _INTEGERS else text for name, text in zip(table.key, texts, strict=True))
