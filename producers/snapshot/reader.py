"""Reads a table chunk by chunk, each in its own short transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, LiteralString, cast

import psycopg
from psycopg import pq, sql

from infra.postgres.connect import BEGIN_ONE_SNAPSHOT, pipelined, unprepared
from infra.postgres.copy_out import Lines, copy_lines
from infra.postgres.key_order import ascending, ask_key_orders, compared
from infra.postgres.moments import ask_moment
from producers.snapshot.resnapshot_rules import Texts
from producers.snapshot.table_snapshot import Bounds
from producers.source import partitions
from producers.source.schema_changes import TableStopped
from producers.source.server_text import DOUBTFUL, doubtful
from producers.source.tables import CapturedTable, ask_relation
from schemas.codec.copy_text import unescape
from schemas.errors import HeadraceError
from schemas.events import Relation
from schemas.lazy_dataclass import dataclass
from schemas.xid_snapshot import Moment

_PATIENCE: Final = "SET LOCAL lock_timeout = '100ms'"
"""The table's lock is requested with NOWAIT; the timeout is for other locks of a query, such as on an index."""

_TYPE_NAMES: Final = """
SELECT pg_catalog.format_type(oid, -1) FROM pg_catalog.unnest(%s::pg_catalog.oid[]) WITH ORDINALITY AS of (oid, place)
ORDER BY place
"""

CHUNK_BYTES: Final = 32 << 20
"""The most that COPY sends for one chunk (at least a row); encoded rows and Kafka's queue need as much again."""

_ALL_CHUNKS_BYTES: Final = 96 << 20
"""The most that COPY sends for all chunks that are read at the same time."""


CHUNKS_EACH: Final = 2
"""The chunks of a worker in progress: one that is read, and one that is encoded and committed meanwhile."""


def chunk_bytes(workers: int) -> int:
    """Return the most bytes that COPY may send for a chunk while so many workers read."""
    return min(CHUNK_BYTES, _ALL_CHUNKS_BYTES // workers) // CHUNKS_EACH


class TableGone(HeadraceError):
    """Remove it from databases.<name>.tables, or create it again and re-snapshot it."""


@dataclass(frozen=True)
class ChunkRows:
    """The rows of one chunk: complete lines of COPY's text format, with the columns of `relation`.

    `upto` is the last key of its range; None: the chunk extends to the end of its bounds.
    """

    data: bytes
    rows: int
    relation: Relation
    moment: Moment
    upto: Texts | None = None

    def key_texts(self, index: int, key: tuple[str, ...]) -> Texts:
        """Return the texts of one row's columns `key`."""
        names = [column.name for column in self.relation.columns]
        fields = self.data.split(b"\n", index + 1)[index].split(b"\t")
        return tuple(unescape(fields[names.index(name)]).decode() for name in key)


def plan_chunk(connection: psycopg.Connection[Any], table: CapturedTable, bounds: Bounds, rows: int) -> Texts | None:
    """Return the last key of the next chunk of about `rows` rows, None if it extends to the end of the bounds.

    Raises TableGone if the table was dropped.
    """
    query = sql.SQL("SELECT {}, {} FROM {} AS t {} ORDER BY {} LIMIT 1 OFFSET {}").format(
        _doubtful(table),
        sql.SQL(", ").join(sql.SQL("{}::text").format(column) for column in _key(table)),
        _from(table),
        _where(connection, table, bounds),
        ascending(_key(table), table.order),
        sql.Literal(rows - 1),
    )
    with _present(table):
        row = connection.execute(query).fetchone()
    if row is None:
        return None
    if row[0]:
        raise TableStopped(doubtful("a key", table.encoding))
    return tuple(row[1:])


def read_chunk(
    connection: psycopg.Connection[Any],
    table: CapturedTable,
    bounds: Bounds,
    rows: int,
    *,
    longest: int = CHUNK_BYTES,
    most: int = CHUNK_BYTES,
    planned: Callable[[Texts | None], object] = lambda _: None,
) -> ChunkRows:
    """Read the first rows with keys in the bounds, in key order: about `rows`, and `most` bytes at most, or one row.

    `longest` is the most bytes that COPY may send for one row. `planned` is called before the rows are read, with the
    last key that will be, None if it is that of the bounds, and may wait: meanwhile the table is locked as for reading.
    Never waits in the queue for the table's lock. Raises TableGone if the table was dropped, TableStopped if the sort
    order of its key changed, LineTooLong for a row, and psycopg's errors.
    """
    try:
        with _present(table):
            moment, relation = _begun(connection, table)
            upto = None if bounds.keys else plan_chunk(connection, table, bounds, rows)
            planned(upto)
            if upto is not None:
                bounds = replace(bounds, last=upto)
            _refuse_doubtful_keys(connection, table, bounds)
            lines = _copy(connection, table, relation, bounds, most, longest)
    finally:
        if connection.info.status == pq.ConnStatus.OK:
            connection.execute("ROLLBACK")
    if not lines.whole:
        names = [column.name for column in relation.columns]
        upto = tuple(unescape(field).decode() for field in lines.last([names.index(name) for name in table.key]))
    return ChunkRows(lines.data, lines.rows, relation, moment, upto)


def _begun(connection: psycopg.Connection[Any], table: CapturedTable) -> tuple[Moment, Relation]:
    """Begin the chunk's transaction; return the moment that it shows, and the table's columns as it sees them."""
    oid = table.relation.oid
    with unprepared(connection), pipelined(connection):  # one round trip to the server
        connection.execute(BEGIN_ONE_SNAPSHOT)
        connection.execute(_PATIENCE)
        # Before the snapshot: a rewritten table is empty in every snapshot taken before the rewrite's end.
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT").format(_from(table)))
        moment = ask_moment(connection)
        described = ask_relation(connection, oid, table.relation)
        orders = ask_key_orders(connection, {oid: table.key}) if table.order else None
    relation = described()
    if relation is None:
        raise TableGone(f"table {table.name} no longer exists")
    if gone := set(table.key) - {column.name for column in relation.columns}:
        raise TableGone(f"table {table.name} no longer has key column {min(gone)}")
    if orders is not None and orders()[oid] not in (table.order, None):
        # If that index is gone, catalog_watch stops the table with its own reason.
        raise TableStopped(sorts_otherwise(table))
    return moment(), relation


def sorts_otherwise(table: CapturedTable) -> str:
    """Return why a snapshot cannot continue when its key ranges contain other rows."""
    return f"its key ({', '.join(table.key)}) sorts differently than when its snapshot began"


def _refuse_doubtful_keys(connection: psycopg.Connection[Any], table: CapturedTable, bounds: Bounds) -> None:
    """Raise TableStopped if a key does not survive conversion to UTF-8 and back."""
    if table.encoding not in DOUBTFUL:
        return
    query = sql.SQL("SELECT coalesce(bool_or({}), false) FROM {} AS t {}")
    if connection.execute(
        query.format(_doubtful(table), _from(table), _where(connection, table, bounds))
    ).fetchone() == (True,):
        raise TableStopped(doubtful("a key", table.encoding))


@contextmanager
def _present(table: CapturedTable) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        raise TableGone(f"table {table.name} no longer exists") from error
    except psycopg.errors.UndefinedColumn as error:
        raise TableGone(f"table {table.name} lacks a column of its key ({', '.join(table.key)})") from error


def _copy(
    connection: psycopg.Connection[Any],
    table: CapturedTable,
    relation: Relation,
    bounds: Bounds,
    most: int,
    longest: int,
) -> Lines:
    query = sql.SQL("COPY (SELECT {} FROM {} AS t {} ORDER BY {}) TO STDOUT").format(
        sql.SQL(", ").join(sql.Identifier("t", column.name) for column in relation.columns),
        _from(table),
        _where(connection, table, bounds),
        ascending(_key(table), table.order),
    )
    return copy_lines(connection, query.as_bytes(connection), most=most, longest=longest)


def _from(table: CapturedTable) -> sql.Composable:
    # The stream has only a table's own rows, not those of tables that inherit from it.
    only = sql.SQL("" if table.partitioned else "ONLY ")
    return only + sql.Identifier(table.relation.schema, table.relation.table)


def _key(table: CapturedTable) -> list[sql.Composable]:
    # With the table's alias, since ORDER BY resolves a bare name to an output column first.
    return [sql.Identifier("t", name) for name in table.key]


def _doubtful(table: CapturedTable) -> sql.Composable:
    """Return the condition that a text in a row's key does not survive conversion to UTF-8 and back."""
    if table.encoding not in DOUBTFUL:
        return sql.SQL("false")
    changes = sql.SQL("{0}::text COLLATE \"C\" <> convert_from(convert_to({0}::text, 'UTF8'), 'UTF8')")
    return sql.SQL("({})").format(sql.SQL(" OR ").join(changes.format(column) for column in _key(table)))


def _among(connection: psycopg.Connection[Any], table: CapturedTable, keys: Sequence[Texts]) -> sql.Composable:
    """Return the condition that a row has one of the keys. The planner chooses between index and sequential scan.

    The first row of values is cast to the columns' types; the server resolves the others accordingly.
    """
    types = {column.name: column.type_oid for column in table.relation.columns}
    found = connection.execute(_TYPE_NAMES, ([types[name] for name in table.key],)).fetchall()
    rows: list[list[sql.Composable]] = [[sql.Literal(text) for text in key] for key in keys]
    # The type's name as the server prints it, quoted where needed.
    of_types = [sql.SQL(cast(LiteralString, name)) for (name,) in found]
    rows[0] = [sql.SQL("CAST({} AS {})").format(*each) for each in zip(rows[0], of_types, strict=True)]
    names = [sql.Identifier("wanted", f"key{place}") for place in range(len(table.key))]
    return sql.SQL("EXISTS (SELECT FROM (VALUES {}) AS wanted ({}) WHERE {})").format(
        sql.SQL(", ").join(sql.SQL("({})").format(sql.SQL(", ").join(row)) for row in rows),
        sql.SQL(", ").join(sql.Identifier(f"key{place}") for place in range(len(table.key))),
        compared(_key(table), "=", names, table.order),
    )


def _where(connection: psycopg.Connection[Any], table: CapturedTable, bounds: Bounds) -> sql.Composable:
    """Return the range as row comparisons, which can use an index on the key."""
    comparisons = [
        compared(_key(table), sign, [sql.Literal(part) for part in bound], table.order)
        for bound, sign in ((bounds.first, ">="), (bounds.after, ">"), (bounds.last, "<="))
        if bound is not None
    ]
    if bounds.keys:
        comparisons.append(_among(connection, table, bounds.keys))
    if table.partitioned:
        comparisons.append(partitions.within(connection, bounds.partitions))
    return sql.SQL("WHERE ") + sql.SQL(" AND ").join(comparisons) if comparisons else sql.SQL("")
