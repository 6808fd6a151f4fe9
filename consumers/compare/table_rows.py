"""Reads a table's rows by key range, each in a short transaction, and encodes them as the producer does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any, Final

import psycopg
from psycopg import sql

from consumers.compare import marks
from infra.postgres.connect import one_snapshot
from infra.postgres.copy_out import Lines, copy_lines
from infra.postgres.key_order import ascending, compared, key_order
from infra.postgres.moments import current_moment
from schemas.avro import row_record
from schemas.codec.copy_text import unescape
from schemas.codec.decoder import Decoder, KeyDecoder
from schemas.codec.encoder import Encoder
from schemas.errors import UsageError
from schemas.events import Column, Origin, Relation
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn
from schemas.wire import HEADER_BYTES
from schemas.xid_snapshot import Moment

Connection = psycopg.Connection[Any]

_FIND: Final = """
    SELECT c.oid::bigint, c.relkind = 'p' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
"""
_COLUMNS: Final = """
    SELECT attname, atttypid::bigint, atttypmod, format_type(atttypid, atttypmod) FROM pg_attribute
     WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
_ESTIMATE: Final = """
    SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c
     WHERE c.oid IN (SELECT %(table)s::oid UNION SELECT relid FROM pg_partition_tree(%(table)s::oid) WHERE isleaf)
       AND c.relkind <> 'p'
"""
"""Of the leaves of a partitioned table alone: an ANALYZE of the whole sets the root's as well."""
_AT_ONCE: Final = 5_000
RANGE_BYTES: Final = 32 << 20
"""The most that COPY sends at a time, but at least one row."""


@dataclass(frozen=True)
class KeyRange:
    """The rows of a range of keys, as lines of COPY.

    `upto` is the last key of the range as texts, None for the last range, which has no end.
    """

    lines: Lines
    upto: tuple[str, ...] | None


class TableRows:
    """One table. Raises UsageError if the table does not exist.

    Keys are message keys without the schema's id, but those of `keys_between` have bytes in its place.
    """

    def __init__(
        self,
        connection: Connection,
        table: str,
        gitlab_schema: str,
        key: Sequence[str],
        *,
        range_bytes: int = RANGE_BYTES,
    ) -> None:
        self._connection = connection
        self._range_bytes = range_bytes
        schema, _, name = table.partition(".")
        found = connection.execute(_FIND, (schema, name)).fetchone()
        if found is None:
            raise UsageError(f"the database has no table {table}", remedy="give its name as schema.table")
        oid, partitioned = found
        self._oid = int(oid)
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
        self._encoder = Encoder(relation, gitlab_schema, key, origin=Origin("", ""), value_schema_id=0, key_schema_id=0)
        self._prefix = self._encoder.copy_prefix(lsn=Lsn(0), ordinal=0, ts_ms=0)
        self._decoder = Decoder(self._encoder.value_schema)
        self._keys = KeyDecoder(self._encoder.key_schema)
        self._key = list(key)
        # The stream has only the table's own rows, not those of tables that inherit from it.
        self._from = sql.SQL("" if partitioned else "ONLY ") + sql.Identifier(schema, name)
        self._key_columns = [sql.Identifier("t", column) for column in key]
        order = key_order(connection, oid, key)
        if order is None:
            raise UsageError(
                f"the key ({', '.join(key)}) of the topic of {table} no longer has a unique index",
                remedy="create one, or see the table's state in `headrace check`",
            )
        self._order = order
        self._ascending = ascending(self._key_columns, order)
        self._list = sql.SQL(", ").join(sql.Identifier("t", column.name) for column in relation.columns)

    @property
    def identity(self) -> dict[str, str]:
        """What distinguishes the table, its columns and its key from others."""
        row = self._connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
        described = repr((self.row_fields, self._key, self._order))
        return {
            "server": row[0] if row else "",
            "table": str(self._oid),
            "columns": sha256(described.encode()).hexdigest(),
        }

    def estimated_rows(self) -> int:
        """Return about how many rows the table has, as of its last ANALYZE or VACUUM; 0 if it had none."""
        row = self._connection.execute(_ESTIMATE, {"table": self._oid}).fetchone()
        return int(row[0]) if row else 0

    @property
    def row_fields(self) -> object:
        """The fields of a row's Avro record, by which events with another schema are recognised."""
        return row_record(self._encoder.value_schema)["fields"]

    def key_of(self, key: bytes) -> dict[str, object]:
        """Return a key's columns."""
        return self._keys.decode_key(bytes(HEADER_BYTES) + key)

    def row_of(self, row: bytes) -> dict[str, object]:
        """Return a row's columns."""
        return dict(self._decoder.decode(self._prefix + row).after or {})

    def ranges(self, rows: int, after: Sequence[str] | None = None) -> Iterator[KeyRange]:
        """Yield the table range by range, from after a key: `rows` of them each, or fewer if they are wide."""
        planned = rows
        while True:
            lines = self._copy(self._between(after, None), limit=planned)
            ended = lines.whole and lines.rows < planned
            after = None if ended else tuple(self._last_key(lines))
            yield KeyRange(lines, after)
            if ended:
                return
            planned = min(rows, max(1, self._range_bytes * 3 // 4 * lines.rows // len(lines.data)))

    def marks(self, lines: Lines, place: int, secret: bytes) -> bytes:
        """Return the marks of the lines of a range, with `place` as their place."""
        return marks.copy_marks(self._encoder, lines.data, place, secret)

    def keys_between(self, after: Sequence[str] | None, upto: Sequence[str] | None) -> Iterator[list[bytes]]:
        """Yield the keys now in a range that `ranges` has read; None is the end of the table."""
        whole = False
        while not whole:
            lines = self._copy(self._between(after, upto))
            yield self._encoded(lines)[0]
            whole = lines.whole
            if not whole:
                after = self._last_key(lines)

    def rows(self, keys: Sequence[bytes], check: Callable[[], object]) -> tuple[dict[bytes, bytes], int, Moment]:
        """Return the rows of the first of `keys`, how many keys were looked up, and when the rows were read.

        All keys are looked up unless their rows are too large for memory. `check` is called before each part; if it
        raises, the lookup ends.
        """
        found: dict[bytes, bytes] = {}
        size = start = 0
        at_once = _AT_ONCE
        with one_snapshot(self._connection):
            moment = current_moment(self._connection)
            while start < len(keys) and size < self._range_bytes:
                check()
                part = keys[start : start + at_once]
                # Without a savepoint, a canceled query would end the transaction, and with it the snapshot.
                self._connection.execute("SAVEPOINT part")
                lines = self._copy(self._wanted(part))
                self._connection.execute("ROLLBACK TO SAVEPOINT part")
                if not lines.whole:
                    at_once = max(1, len(part) // 2)
                    continue
                encoded, values = self._encoded(lines)
                found.update(zip((key[HEADER_BYTES:] for key in encoded), values, strict=True))
                start += len(part)
                size += len(lines.data)
        return found, start, moment

    def _wanted(self, keys: Sequence[bytes]) -> sql.Composable:
        decoded = [self.key_of(key) for key in keys]
        names = [sql.Identifier("wanted", name) for name in self._key]
        return sql.SQL("JOIN (SELECT {} FROM unnest({}) AS wanted({})) AS wanted ON {}").format(
            sql.SQL(", ").join(
                sql.SQL("{}::{} AS {}").format(each, sql.SQL(self._types[name]), sql.Identifier(name))
                for name, each in zip(self._key, names, strict=True)
            ),
            sql.SQL(", ").join(
                sql.SQL("{}::text[]").format(sql.Literal([str(each[name]) for each in decoded])) for name in self._key
            ),
            sql.SQL(", ").join(map(sql.Identifier, self._key)),
            compared(self._key_columns, "=", names, self._order),
        )

    def _between(self, after: Sequence[str] | None, upto: Sequence[str] | None) -> sql.Composable:
        return sql.SQL("{} ORDER BY {}").format(self._where(after, upto), self._ascending)

    def _copy(self, where: sql.Composable, *, limit: int | None = None) -> Lines:
        query = sql.SQL("COPY (SELECT {} FROM {} AS t {} LIMIT {}) TO STDOUT").format(
            self._list, self._from, where, sql.Literal(limit)
        )
        return copy_lines(self._connection, query.as_bytes(self._connection), most=self._range_bytes)

    def _encoded(self, lines: Lines) -> tuple[list[bytes], list[bytes]]:
        return self._encoder.encode_copy_chunk(lines.data, b"")

    def _last_key(self, lines: Lines) -> list[str]:
        names = list(self._types)
        return [unescape(field).decode() for field in lines.last([names.index(name) for name in self._key])]

    def _where(self, after: Sequence[str] | None, upto: Sequence[str] | None) -> sql.Composable:
        bounds = [
            compared(self._key_columns, sign, list(map(sql.Literal, bound)), self._order)
            for bound, sign in ((after, ">"), (upto, "<="))
            if bound is not None
        ]
        return sql.SQL("WHERE ") + sql.SQL(" AND ").join(bounds) if bounds else sql.SQL("")
