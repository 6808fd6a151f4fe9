"""A table's rows as its producer would encode them, read in key ranges, each in a short transaction of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql

from infra.key_order import compared, operator_schemas
from schemas.avro import row_record
from schemas.decoder import Decoder, KeyDecoder
from schemas.encoder import Encoder
from schemas.errors import UsageError
from schemas.events import Column, Relation
from schemas.positions import Lsn, parse_lsn
from schemas.wire import HEADER_BYTES

Connection = psycopg.Connection[Any]

_FIND: Final = """
    SELECT c.oid::bigint, c.relkind = 'p' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
"""
_COLUMNS: Final = """
    SELECT attname, atttypid::bigint, atttypmod, format_type(atttypid, atttypmod) FROM pg_attribute
     WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
_MOMENT: Final = "SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text"
"""One query, so that its snapshot, which is the transaction's, is taken before the log position is read."""
_AT_ONCE: Final = 5_000


@dataclass(frozen=True, slots=True)
class Moment:
    """What a transaction saw (pg_snapshot's text form), and the log's insert position noted behind that."""

    snapshot: str
    lsn: Lsn


class TableRows:
    """One table. Keys are message keys without the schema's id. Raises UsageError when there is no such table."""

    def __init__(self, connection: Connection, table: str, gitlab_schema: str, key: Sequence[str]) -> None:
        self._connection = connection
        schema, _, name = table.partition(".")
        found = connection.execute(_FIND, (schema, name)).fetchone()
        if found is None:
            raise UsageError(f"there is no table {table} in the database", remedy="name it as schema.table")
        oid, partitioned = found
        columns = connection.execute(_COLUMNS, (oid,)).fetchall()
        self._types = {name: kind for name, _, _, kind in columns}
        relation = Relation(
            oid,
            schema,
            name,
            "d",
            tuple(Column(name, kind, modifier) for name, kind, modifier, _ in columns),
            tuple(key),
        )
        self._encoder = Encoder(relation, gitlab_schema, key, database="", value_schema_id=0, key_schema_id=0)
        self._prefix = self._encoder.copy_prefix(lsn=Lsn(0), ordinal=0, ts_ms=0)
        self._decoder = Decoder(self._encoder.value_schema)
        self._keys = KeyDecoder(self._encoder.key_schema)
        self._key = list(key)
        # A table has its own rows alone in the stream, not those of tables that inherit from it.
        self._from = sql.SQL("" if partitioned else "ONLY ") + sql.Identifier(schema, name)
        self._key_columns = [sql.Identifier("t", column) for column in key]
        self._key_sql = sql.SQL(", ").join(self._key_columns)
        self._operator_schemas = operator_schemas(connection, oid, key)
        self._list = sql.SQL(", ").join(sql.Identifier("t", column.name) for column in relation.columns)

    @property
    def row_fields(self) -> object:
        """The fields of a row's Avro record, by which events of another shape are told."""
        return row_record(self._encoder.value_schema)["fields"]

    def key_of(self, key: bytes) -> dict[str, object]:
        """Return a key's columns."""
        return self._keys.decode_key(bytes(HEADER_BYTES) + key)

    def row_of(self, row: bytes) -> dict[str, object]:
        """Return a row's columns."""
        return dict(self._decoder.decode(self._prefix + row).after or {})

    def ranges(self, rows: int) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Yield the keys and the encoded rows of one range of about `rows` rows after the other."""
        after: Sequence[str] | None = None
        while True:
            upto = self._connection.execute(
                sql.SQL("SELECT {} FROM {} AS t {} ORDER BY {} LIMIT 1 OFFSET {}").format(
                    sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier("t", name)) for name in self._key),
                    self._from,
                    self._where(after, None),
                    self._key_sql,
                    sql.Literal(rows - 1),
                )
            ).fetchone()
            yield self._copy(self._where(after, upto))
            if upto is None:
                return
            after = upto

    def rows(self, keys: Sequence[bytes], told: Callable[[], object]) -> tuple[dict[bytes, bytes], Moment]:
        """Return those of `keys` that have a row, all as one snapshot saw them, and which that was.

        `told` is called before each part of it, and stops all by raising.
        """
        found: dict[bytes, bytes] = {}
        decoded = [self.key_of(key) for key in keys]
        with self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            row = self._connection.execute(_MOMENT).fetchone()
            assert row is not None
            moment = Moment(str(row[0]), parse_lsn(row[1]))
            for start in range(0, len(keys), _AT_ONCE):
                told()
                part = decoded[start : start + _AT_ONCE]
                names = [sql.Identifier("wanted", name) for name in self._key]
                wanted = sql.SQL("JOIN (SELECT {} FROM unnest({}) AS wanted({})) AS wanted ON {}").format(
                    sql.SQL(", ").join(
                        sql.SQL("{}::" + self._types[name] + " AS {}").format(each, sql.Identifier(name))
                        for name, each in zip(self._key, names, strict=True)
                    ),
                    sql.SQL(", ").join(
                        sql.SQL("{}::text[]").format(sql.Literal([str(each[name]) for each in part]))
                        for name in self._key
                    ),
                    sql.SQL(", ").join(map(sql.Identifier, self._key)),
                    compared(self._key_columns, "=", names, self._operator_schemas),
                )
                found.update(zip(*self._copy(wanted), strict=True))
        return found, moment

    def _copy(self, where: sql.Composable) -> tuple[list[bytes], list[bytes]]:
        query = sql.SQL("COPY (SELECT {} FROM {} AS t {}) TO STDOUT").format(self._list, self._from, where)
        with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            data = b"".join(copy)
        keys, rows = self._encoder.encode_copy_chunk(data, b"")
        return [key[HEADER_BYTES:] for key in keys], rows

    def _where(self, after: Sequence[str] | None, upto: Sequence[str] | None) -> sql.Composable:
        bounds = [
            compared(self._key_columns, operator, list(map(sql.Literal, bound)), self._operator_schemas)
            for bound, operator in ((after, ">"), (upto, "<="))
            if bound is not None
        ]
        return sql.SQL("WHERE ") + sql.SQL(" AND ").join(bounds) if bounds else sql.SQL("")
