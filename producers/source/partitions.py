"""Reads the partitions of a captured table, and compares them with those recorded.

A partitioned table has no rows of its own. Its publication publishes each partition under its own name, so that the
stream has each partition's replica identity, which may differ from the table's, and truncates of single partitions.
Attaching, detaching and dropping a partition send nothing to the stream: rows come and go without events. So the
partitions whose rows are in a topic are recorded with their catalog versions, and compared with the current ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from infra.state.positions import PartitionState
from schemas.events import Relation

_HALF: Final = 1 << 31
"""Half of the 32-bit transaction ids: the range in which PostgreSQL can order two of them."""

_SEARCHED_PAGES: Final = 1 << 17

NOTICES_ATTACHED: Final = 150_000
"""The first server version whose pgoutput looks up a table's publications again after it is attached to another.

Older ones keep the result from the first decoded change of the table until the publication is altered or the stream
restarts: everything written after the attach would be missing, since the table was not published before.
"""

PARTITION_TREE: Final = sql.SQL("""
WITH RECURSIVE tree(root, node, links) AS (
    SELECT captured, captured, '' FROM pg_catalog.unnest(%(oids)s::oid[]) AS captured
    UNION ALL
    SELECT tree.root, i.inhrelid, tree.links || '/' || i.xmin::text
    FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.node
    JOIN pg_catalog.pg_class part ON part.oid = i.inhrelid AND part.relispartition
    WHERE NOT i.inhdetachpending)
""")
"""The tables `oids` and all their descendants in one snapshot.

Not by pg_partition_tree: it ignores the snapshot, returns partitions without their indexes, and opens each, waiting for
locked ones. A partition that is being detached concurrently does not count, as for new snapshots and pgoutput.
"""

_PARTITIONS: Final = PARTITION_TREE + sql.SQL("""
SELECT tree.root::bigint AS root, c.oid::bigint AS oid, n.nspname || '.' || c.relname AS name, tree.links,
       c.relfilenode::bigint AS file, c.relkind = 'p' AS partitioned,
       c.relpersistence = 'p' AS logged,
       c.relreplident = 'f' AS whole,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_index x
             CROSS JOIN pg_catalog.unnest(x.indkey) WITH ORDINALITY AS k(attnum, n)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
             WHERE x.indrelid = c.oid AND k.n <= x.indnkeyatts
               AND CASE c.relreplident WHEN 'd' THEN x.indisprimary AND x.indimmediate
                                       WHEN 'i' THEN x.indisreplident ELSE false END) AS identity
FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.node
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid <> tree.root
""")
_XMIN: Final = "SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text"

_CONSTRAINT: Final = """
SELECT coalesce(pg_catalog.pg_get_partition_constraintdef(c.oid), 'true') FROM pg_catalog.pg_class c
WHERE c.oid = %s AND c.relispartition
"""


@dataclass(frozen=True, slots=True)
class Partition:
    """A leaf partition.

    `links` are the xmin of the pg_inherits rows from the partitioned table down to it; they change if it, or a
    partition that contains it, is detached and attached again. `file` is its relfilenode. `identity` are the columns of
    old rows in the WAL, None for all columns. If not `logged`, its changes are not in the WAL. It is never a foreign
    table, which the unique index of a captured table forbids.
    """

    oid: int
    name: str
    links: str
    file: int
    logged: bool = True
    identity: tuple[str, ...] | None = None

    @property
    def state(self) -> PartitionState:
        """The state to record."""
        return PartitionState(oid=self.oid, links=self.links, file=self.file)


@dataclass(frozen=True, slots=True)
class Partitions:
    """The leaf partitions of one table, by oid; `inner` are those that are partitioned themselves.

    Every transaction below the 64-bit id `seen` had ended when they were read.
    """

    by_oid: Mapping[int, Partition] = field(default_factory=dict)
    inner: frozenset[int] = frozenset()
    seen: int = 0

    @property
    def states(self) -> tuple[PartitionState, ...]:
        """The states to record, sorted by oid."""
        return tuple(self.by_oid[oid].state for oid in sorted(self.by_oid))


@dataclass(frozen=True, slots=True)
class Change:
    """Changes since the recorded partitions, by oid.

    The rows of `gone` ones left the table, even if they were attached again; rows of `added` ones are not in the topic.
    `rewritten` ones have another relfilenode.
    """

    added: frozenset[int]
    gone: frozenset[int]
    rewritten: frozenset[int]


def read_partitions(connection: psycopg.Connection[Any], oids: Collection[int]) -> dict[int, Partitions]:
    """Return oid → current partitions of these partitioned tables."""
    if not oids:
        return {}
    # Queried first: a transaction that ends in between is above it, and may already be in the catalog.
    row = connection.execute(_XMIN).fetchone()
    assert row is not None
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(_PARTITIONS, {"oids": list(oids)}).fetchall()
    read: dict[int, dict[int, Partition]] = {oid: {} for oid in oids}
    inner: dict[int, set[int]] = {oid: set() for oid in oids}
    for each in found:
        if each["partitioned"]:
            inner[each["root"]].add(each["oid"])
            continue
        read[each["root"]][each["oid"]] = Partition(
            each["oid"],
            each["name"],
            each["links"],
            each["file"],
            each["logged"],
            None if each["whole"] else tuple(each["identity"]),
        )
    return {oid: Partitions(partitions, frozenset(inner[oid]), int(row[0])) for oid, partitions in read.items()}


def obstacle(partitions: Iterable[Partition], key: tuple[str, ...]) -> str | None:
    """Return why changes of a table with this key and these partitions cannot be followed, None if they can."""
    for each in sorted(partitions, key=lambda partition: partition.name):
        if not each.logged:
            return f"its partition {each.name} is unlogged, so its changes are not in the WAL"
        # A partition without identity columns refuses UPDATE and DELETE: see producers.source.writability.
        if each.identity and (left_out := [name for name in key if name not in each.identity]):
            return _leaves_out(each.name, left_out[0])
    return None


def identity_obstacle(partition: Relation, key: tuple[str, ...]) -> str | None:
    """Return why changes of a partition, as the stream describes it, lack the key; None if they have it."""
    names = {column.name for column in partition.columns}
    if not names.issuperset(key):
        return None  # an obstacle of the table: producers.source.schema_changes.obstacle
    left_out = [name for name in key if name not in partition.identity_columns]
    if partition.replica_identity == "f" or not left_out:
        return None
    return _leaves_out(partition.qualified_name, left_out[0])


def _leaves_out(partition: str, column: str) -> str:
    return f"the replica identity of its partition {partition} leaves out key column {column}"


def compared(recorded: Iterable[PartitionState], now: Partitions) -> Change:
    """Return the changes since the recorded partitions."""
    before = {each.oid: each for each in recorded}
    gone = {oid for oid, each in before.items() if oid not in now.by_oid or now.by_oid[oid].links != each.links}
    return Change(
        added=frozenset(now.by_oid.keys() - (before.keys() - gone)),
        gone=frozenset(gone),
        rewritten=frozenset(oid for oid in before.keys() - gone if now.by_oid[oid].file != before[oid].file),
    )


def as_its_table(partition: Relation, table: Relation) -> Relation:
    """Return a partition's columns in the table's order, under the table's name.

    It keeps its own replica identity. Columns that the table did not have when it was described come last.
    """
    places = {column.name: place for place, column in enumerate(table.columns)}
    columns = tuple(sorted(partition.columns, key=lambda column: places.get(column.name, len(places))))
    identity = tuple(column.name for column in columns if column.name in partition.identity_columns)
    return Relation(table.oid, table.schema, table.table, partition.replica_identity, columns, identity)


def within(connection: psycopg.Connection[Any], partitions: Sequence[int]) -> sql.Composable:
    """Return the condition on a table's rows (as `t`) to be in one of these partitions, given by oid.

    For a single partition it includes the partition constraint, so that the planner reads no other. It needs no
    privilege on the partition.
    """
    chosen = sql.SQL("t.tableoid = ANY ({}::pg_catalog.oid[])").format(sql.Literal(list(partitions)))
    if len(partitions) != 1:
        return chosen
    row = connection.execute(_CONSTRAINT, (partitions[0],)).fetchone()
    # As the server prints it for this session's search_path; no row: it is no longer a partition.
    return sql.SQL("({}) AND {}").format(sql.SQL("false" if row is None else row[0]), chosen)


def kept_rows(connection: psycopg.Connection[Any], table: Relation, partition: int, seen: int) -> bool:
    """Whether a partition with another relfilenode has a row older than `seen`, which shows that it kept its rows.

    VACUUM FULL, CLUSTER and a move to another tablespace keep each row's xmin. Statements that may hide changes do not:
    ALTER TABLE rewrites a partition that was unlogged for a while. A partition without such a row in its first gigabyte
    may be either.
    """
    row = connection.execute("SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text").fetchone()
    assert row is not None
    if int(row[0]) - seen >= _HALF:
        return False
    query = sql.SQL(
        "SELECT EXISTS (SELECT 1 FROM {} AS t WHERE {} AND t.ctid < {}::pg_catalog.tid"
        " AND pg_catalog.mod({} + {} - t.xmin::text::bigint, {}) BETWEEN 1 AND {})"
    ).format(
        sql.Identifier(table.schema, table.table),
        within(connection, [partition]),
        sql.Literal(f"({_SEARCHED_PAGES},0)"),
        sql.Literal(seen % (2 * _HALF)),
        sql.Literal(2 * _HALF),
        sql.Literal(2 * _HALF),
        sql.Literal(_HALF - 1),
    )
    return connection.execute(query).fetchone() == (True,)
