"""The partitions of a captured table: which there are, what the WAL has of them, and what a change of them means.

A partitioned table has no rows of its own. Its publication publishes each partition under its own name, so that the
stream describes each as it is: with its replica identity, which may differ from the table's, and with a truncate of one
of them. Attaching, detaching and dropping a partition write nothing into the stream: rows come and go without events.
So the partitions whose rows a topic has are recorded with it, each in a version of the catalog, and compared.
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
"""Half of the 32-bit transaction ids: as far as PostgreSQL can tell which of two came first."""

_SEARCHED_PAGES: Final = 1 << 17

NOTICES_ATTACHED: Final = 150_000
"""The first server version whose pgoutput asks again what publishes a table once that is attached to another.

An older one keeps what it found at the first change of the table that it decoded, until the publication is altered or
the stream begins again: all that is written after the attach would be missing, since the table was published by none.
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
"""The tables `oids` and all that is below them, as one snapshot has it.

Not by pg_partition_tree: it shows partitions that the snapshot does not have, without their indexes, and it opens each,
and waits for one that is locked. A partition that is being detached concurrently is none any more, to new snapshots and
to pgoutput alike.
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
    """A table that has rows of a partitioned one.

    `links` are the xmin of the pg_inherits rows from the partitioned table down to it: others, once it or one that it
    is in was detached and attached again. `file` is its relfilenode. `identity` are the columns that an old row carries
    in the WAL, None for all of them. One that is not `logged` has no changes there. None is a foreign table, which the
    unique index of a captured table forbids.
    """

    oid: int
    name: str
    links: str
    file: int
    logged: bool = True
    identity: tuple[str, ...] | None = None

    @property
    def state(self) -> PartitionState:
        """What is recorded of it."""
        return PartitionState(oid=self.oid, links=self.links, file=self.file)


@dataclass(frozen=True, slots=True)
class Partitions:
    """The partitions of one table, by oid; `inner` are those that are partitioned themselves, and have no rows.

    Every transaction below the 64-bit id `seen` had ended when they were read.
    """

    by_oid: Mapping[int, Partition] = field(default_factory=dict)
    inner: frozenset[int] = frozenset()
    seen: int = 0

    @property
    def states(self) -> tuple[PartitionState, ...]:
        """What is recorded of them, sorted by oid."""
        return tuple(self.by_oid[oid].state for oid in sorted(self.by_oid))


@dataclass(frozen=True, slots=True)
class Change:
    """What became of the recorded partitions, by oid.

    The rows of those that are `gone` left the table, also where they came back by another attach; `added` are those
    that have rows of which the topic knows nothing. `rewritten` have another file under the same name.
    """

    added: frozenset[int]
    gone: frozenset[int]
    rewritten: frozenset[int]


def read_partitions(connection: psycopg.Connection[Any], oids: Collection[int]) -> dict[int, Partitions]:
    """Return oid → its partitions for those of the tables that are partitioned, as the catalog has them now."""
    if not oids:
        return {}
    # Asked first: a transaction that ends in between is above it, and may be in the catalog already.
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
    """Return why the changes of a table with that key and these partitions cannot be followed, None when they can."""
    for each in sorted(partitions, key=lambda partition: partition.name):
        if not each.logged:
            return f"its partition {each.name} is unlogged, so that its changes are not in the WAL"
        # One without any is producers.source.writability's: it refuses UPDATE and DELETE, so that none of them is
        # missed.
        if each.identity and (left_out := [name for name in key if name not in each.identity]):
            return _leaves_out(each.name, left_out[0])
    return None


def identity_obstacle(partition: Relation, key: tuple[str, ...]) -> str | None:
    """Return why the changes of a partition, as the stream describes it, do not tell their key; None when they do."""
    names = {column.name for column in partition.columns}
    if not names.issuperset(key):
        return None  # of the whole table; see producers.source.schema_changes.obstacle
    left_out = [name for name in key if name not in partition.identity_columns]
    if partition.replica_identity == "f" or not left_out:
        return None
    return _leaves_out(partition.qualified_name, left_out[0])


def _leaves_out(partition: str, column: str) -> str:
    return f"the replica identity of its partition {partition} leaves out {column}, which is in its key"


def compared(recorded: Iterable[PartitionState], now: Partitions) -> Change:
    """Return what became of the recorded partitions."""
    before = {each.oid: each for each in recorded}
    gone = {oid for oid, each in before.items() if oid not in now.by_oid or now.by_oid[oid].links != each.links}
    return Change(
        added=frozenset(now.by_oid.keys() - (before.keys() - gone)),
        gone=frozenset(gone),
        rewritten=frozenset(oid for oid in before.keys() - gone if now.by_oid[oid].file != before[oid].file),
    )


def as_its_table(partition: Relation, table: Relation) -> Relation:
    """Return a partition's columns in the order in which the table has them, under the table's name.

    Its replica identity stays its own. Columns that the table had not when it was described come last.
    """
    places = {column.name: place for place, column in enumerate(table.columns)}
    columns = tuple(sorted(partition.columns, key=lambda column: places.get(column.name, len(places))))
    identity = tuple(column.name for column in columns if column.name in partition.identity_columns)
    return Relation(table.oid, table.schema, table.table, partition.replica_identity, columns, identity)


def within(connection: psycopg.Connection[Any], partitions: Sequence[int]) -> sql.Composable:
    """Return the condition on a table's rows (as `t`) that holds for those in some of its partitions, given by oid.

    For a single one it has the server's own condition, by which that one alone is read. No right on it is needed.
    """
    chosen = sql.SQL("t.tableoid = ANY ({}::pg_catalog.oid[])").format(sql.Literal(list(partitions)))
    if len(partitions) != 1:
        return chosen
    row = connection.execute(_CONSTRAINT, (partitions[0],)).fetchone()
    # As the server prints it for the search_path of this session; none: it is a partition no more.
    return sql.SQL("({}) AND {}").format(sql.SQL("false" if row is None else row[0]), chosen)


def kept_rows(connection: psycopg.Connection[Any], table: Relation, partition: int, seen: int) -> bool:
    """Whether a partition with another file has a row still from before `seen`, which shows that it kept its rows.

    VACUUM FULL, CLUSTER and a move to another tablespace keep each row's xmin. What may have hidden changes does not:
    a partition that was unlogged for a while was written anew by its ALTER TABLE. A partition without such a row may be
    either, and so may one that has none in its first gigabyte.
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
