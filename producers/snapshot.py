"""Reading a table chunk by chunk, each in a short transaction of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq, sql

from infra.key_order import compared
from producers import copy_out, partitions
from producers.copying import Bounds
from producers.reread import Texts
from producers.tables import CapturedTable, relation_of
from schemas.copy_text import unescape
from schemas.errors import HeadraceError
from schemas.events import Relation
from schemas.positions import Lsn, parse_lsn
from schemas.xid_snapshot import Snapshot

_MOMENT = "SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text"
"""One query, so that its snapshot, which is the transaction's, is taken before the log position is read."""


class TableGone(HeadraceError):
    """Take it out of the settings' tables, or create it again and read it anew."""


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """What one chunk showed: whole lines of COPY's text format, in the columns of `relation`."""

    data: bytes
    rows: int
    relation: Relation
    snapshot: Snapshot
    lsn: Lsn

    def key_texts(self, index: int, key: tuple[str, ...]) -> Texts:
        """Return the texts of the columns `key` of one row."""
        names = [column.name for column in self.relation.columns]
        fields = self.data.split(b"\n", index + 1)[index].split(b"\t")
        return tuple(unescape(fields[names.index(name)]).decode() for name in key)


def current_snapshot(connection: psycopg.Connection[Any]) -> tuple[Snapshot, Lsn]:
    """Return what a query sees now, and the log's insert position noted behind that."""
    row = connection.execute(_MOMENT).fetchone()
    assert row is not None
    return Snapshot.parse(row[0]), parse_lsn(row[1])


def next_xid(connection: psycopg.Connection[Any]) -> int:
    """Return a transaction id above all that have begun. A snapshot's xmax is none: later ones may run already."""
    row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert row is not None
    return int(row[0])


def plan_chunk(connection: psycopg.Connection[Any], table: CapturedTable, bounds: Bounds, rows: int) -> Texts | None:
    """Return the last key of the next chunk of about `rows` rows, None when the chunk goes to the end of the bounds.

    Raises TableGone when the table was dropped.
    """
    query = sql.SQL("SELECT {} FROM {} AS t {} ORDER BY {} LIMIT 1 OFFSET {}").format(
        sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier("t", name)) for name in table.key),
        _from(table),
        _where(connection, table, bounds),
        _key(table),
        sql.Literal(rows - 1),
    )
    with _present(table):
        row = connection.execute(query).fetchone()
    return None if row is None else tuple(row)


def read_chunk(connection: psycopg.Connection[Any], table: CapturedTable, bounds: Bounds) -> ChunkRows:
    """Read the rows with keys in the bounds, in key order.

    Raises TableGone when the table was dropped.
    """
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        # Before the snapshot: what rewrites a table shows it empty to every snapshot taken before its end.
        with _present(table):
            connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(_from(table)))
        snapshot, lsn = current_snapshot(connection)
        relation = relation_of(connection, table.relation.oid, table.relation)
        if relation is None:
            raise TableGone(f"table {table.name} does not exist any more")
        if gone := set(table.key) - {column.name for column in relation.columns}:
            raise TableGone(f"table {table.name} has no column {min(gone)} any more, which is in its key")
        query = sql.SQL("COPY (SELECT {} FROM {} AS t {} {}) TO STDOUT").format(
            sql.SQL(", ").join(sql.Identifier(column.name) for column in relation.columns),
            _from(table),
            _where(connection, table, bounds),
            sql.SQL("ORDER BY {}").format(_key(table)),
        )
        data, rows = _copy(connection, query.as_bytes(connection))
    finally:
        if connection.info.status == pq.ConnStatus.OK:
            connection.execute("ROLLBACK")
    return ChunkRows(data, rows, relation, snapshot, lsn)


@contextmanager
def _present(table: CapturedTable) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        raise TableGone(f"table {table.name} does not exist any more") from error
    except psycopg.errors.UndefinedColumn as error:
        raise TableGone(f"table {table.name} lacks a column of its key ({', '.join(table.key)})") from error


def _copy(connection: psycopg.Connection[Any], query: bytes) -> tuple[bytes, int]:
    """Run a COPY; return its lines, joined, and their number."""
    if copy_out.possible(connection.pgconn):
        return copy_out.copy_out(connection.pgconn, query)
    lines = _copy_lines(connection, query)
    return b"".join(lines), len(lines)


def _copy_lines(connection: psycopg.Connection[Any], query: bytes) -> list[memoryview]:
    """Run a COPY and return its lines. psycopg's own copy costs several times as much a row."""
    pgconn = connection.pgconn
    result = pgconn.exec_(query)
    if result.status != pq.ExecStatus.COPY_OUT:
        raise psycopg.errors.error_from_result(result)
    lines: list[memoryview] = []
    append = lines.append
    read = pgconn.get_copy_data
    while True:
        size, line = read(0)
        if size <= 0:
            break
        append(line)
    end = pgconn.get_result()
    while pgconn.get_result() is not None:
        pass
    if end is None:
        raise psycopg.OperationalError("the connection was lost in a COPY")
    if end.status != pq.ExecStatus.COMMAND_OK:
        raise psycopg.errors.error_from_result(end)
    return lines


def _from(table: CapturedTable) -> sql.Composable:
    # A table has its own rows alone in the stream, not those of tables that inherit from it.
    only = sql.SQL("" if table.partitioned else "ONLY ")
    return only + sql.Identifier(table.relation.schema, table.relation.table)


def _key(table: CapturedTable) -> sql.Composable:
    # With the table's alias, since ORDER BY takes a bare name for that of an output column first.
    return sql.SQL(", ").join(sql.Identifier("t", name) for name in table.key)


def _where(connection: psycopg.Connection[Any], table: CapturedTable, bounds: Bounds) -> sql.Composable:
    """Return the range as row comparisons, which an index on the key serves."""
    columns = [sql.Identifier("t", name) for name in table.key]
    comparisons = [
        compared(columns, operator, [sql.Literal(part) for part in bound], table.operator_schemas)
        for bound, operator in ((bounds.first, ">="), (bounds.after, ">"), (bounds.last, "<="))
        if bound is not None
    ]
    if table.partitioned:
        comparisons.append(partitions.within(connection, bounds.partitions))
    return sql.SQL("WHERE ") + sql.SQL(" AND ").join(comparisons) if comparisons else sql.SQL("")
