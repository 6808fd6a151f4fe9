"""Produces the events of a table's rows, as a producer would, from the rows in a database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import psycopg
from confluent_kafka import Producer
from psycopg import sql

from consumers.contract.primary_key import primary_key
from consumers.testing.settling import until_shown
from infra.kafka import clients, topics
from infra.schema_registry.topic_registry import open_registry
from infra.settings.model import Settings
from schemas.avro import key_schema, value_schema
from schemas.codec.encoder import Encoder
from schemas.events import Column, Op, Origin, Relation
from schemas.positions import Lsn
from schemas.topics import table_topic

Texts = Sequence[bytes | None]
"""A row as PostgreSQL prints it, one value per column."""

_PARTITIONS: Final = 4
_SECONDS: Final = 120
_TS_MS: Final = 1_700_000_000_000
_ENDED_XID: Final = 7
"""The id of a transaction that ended long ago."""
_COLUMNS: Final = """
SELECT a.attname::text, a.atttypid::bigint, a.atttypmod FROM pg_attribute a
 WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum
"""


class NoPrimaryKey(AssertionError):
    """Its events have no key."""


class RowFeed:
    """The topic of one table, and the rows that it had when `take` was called.

    `xid` is the low half of the events' transaction id.
    """

    def __init__(
        self, settings: Settings, connection: psycopg.Connection[Any], gitlab_schema: str, table: str, database: str
    ) -> None:
        schema, _, name = table.partition(".")
        self.xid = _ENDED_XID
        self.name = sql.Identifier(schema, name)
        self._settings = settings
        self._connection = connection
        self._lsn = 1_000
        self._taken: list[Texts] = []
        quoted = self.name.as_string(connection)
        columns = tuple(Column(*row) for row in connection.execute(_COLUMNS, (quoted,)))
        self.key = tuple(primary_key(connection, table))
        if not self.key:
            raise NoPrimaryKey(f"table {table} has no primary key; its CREATE TABLE has to declare one")
        self._columns = [column.name for column in columns]
        relation = Relation(16_384, schema, name, "d", columns, self.key)
        self._topic = table_topic(settings.prefix, gitlab_schema, database, schema, name)
        topics.ensure_topic(settings.kafka, self._topic, partitions=_PARTITIONS)
        registry = open_registry(settings)
        self._encoder = Encoder(
            relation,
            gitlab_schema,
            self.key,
            origin=Origin(database, database),
            value_schema_id=registry.register(f"{self._topic}-value", value_schema(relation, gitlab_schema)),
            key_schema_id=registry.register(f"{self._topic}-key", key_schema(relation, gitlab_schema, self.key)),
        )

    def rows(self) -> dict[object, Texts]:
        """Return the table's rows by key: the text of a key of one column, else a tuple of texts."""
        return {self._key_of(row): row for row in self._read()}

    def take(self) -> None:
        """Remember the rows as they are, for `publish` and `publish_deleted`."""
        self._taken = self._read()

    def publish(self) -> None:
        """Produce an event of each remembered row, as a snapshot would."""
        self._send(self._record(row) for row in self._taken)

    def publish_deleted(self) -> None:
        """Produce a delete and its tombstone for each remembered row."""
        records: list[tuple[bytes, bytes | None]] = []
        for row in self._taken:
            old = [value if name in self.key else None for name, value in zip(self._columns, row, strict=True)]
            record = self._encoder.delete(self._prefix(Op.DELETE), 0, _TS_MS, old)
            records += [record, (record[0], None)]
        self._send(records)

    def _read(self) -> list[Texts]:
        columns = sql.SQL(", ").join(map(sql.Identifier, self._columns))
        query = sql.SQL("SELECT {} FROM {} ORDER BY {}").format(
            columns, self.name, sql.SQL(", ").join(map(sql.Identifier, self.key))
        )
        # The server's own text, as it is in the WAL: a cast to text differs for some types.
        result = self._connection.execute(query).pgresult
        assert result is not None
        return [[result.get_value(row, n) for n in range(result.nfields)] for row in range(result.ntuples)]

    def _key_of(self, row: Texts) -> object:
        values = tuple(value for name, value in zip(self._columns, row, strict=True) if name in self.key)
        return values[0] if len(values) == 1 else values

    def _prefix(self, op: Op) -> bytes:
        self._lsn += 8
        return self._encoder.event_prefix(op, lsn=Lsn(self._lsn), xid=self.xid, ts_ms=_TS_MS)

    def _record(self, row: Texts) -> tuple[bytes, bytes]:
        return self._encoder.change(self._prefix(Op.READ), 0, _TS_MS, row)

    def _send(self, records: Iterable[tuple[bytes, bytes | None]]) -> None:
        producer: Producer = clients.producer(self._settings.kafka, transactional_id=f"{self._topic}-test")
        producer.init_transactions(_SECONDS)
        producer.begin_transaction()
        for key, value in records:
            self._produce(producer, key, value)
        producer.commit_transaction(_SECONDS)
        until_shown(self._settings.kafka, self._topic)

    def _produce(self, producer: Producer, key: bytes, value: bytes | None) -> None:
        while True:
            try:
                producer.produce(self._topic, key=key, value=value)
            except BufferError:  # its queue is full, of a large table's rows
                producer.poll(1)
            else:
                return
