"""One captured table while it is published: its encoder, the rules of its snapshot, and the records that wait."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from infra.positions import ChunkState, SnapshotState
from infra.registry import Registry
from producers.chunks import Chunk, Key, TableChunks
from producers.snapshot import ChunkRows, key_texts
from producers.tables import CapturedTable, comparable_key
from producers.visibility import Snapshot
from schemas.avro import key_schema, value_schema
from schemas.encoder import Encoder
from schemas.events import Relation
from schemas.positions import Lsn, Position

Record = dict[str, Any]
"""What confluent-kafka's produce_batch takes: `key`, `value`, perhaps `partition`."""


class TableFeed:
    """What a producer knows of one table. Records collect in `waiting` until the producer sends them."""

    def __init__(
        self,
        source: str,
        table: CapturedTable,
        partitions: int,
        registry: Registry,
        state: SnapshotState | None,
        *,
        not_before: int,
    ) -> None:
        """`not_before` is kept with a snapshot that starts now; see SnapshotState."""
        self.source = source
        self.table = table
        self.partitions = partitions
        self.waiting: list[Record] = []
        self._registry = registry
        self._encoders: dict[tuple[object, ...], Encoder] = {}
        self._restarted = False
        # First, since a table whose key changed is refused here, and its ledger could not be read.
        self.encoder_for(table.relation)
        self.state = state or SnapshotState(source=source, table=table.name, topic=table.topic, not_before=not_before)
        self.chunks = TableChunks(
            Chunk(
                self._key(each.after),
                self._key(each.upto),
                Snapshot.parse(each.snapshot) if each.snapshot else None,
                each.lsn,
            )
            for each in self.state.copied
        )
        self.judging = not self.chunks.settled
        """Whether events of this table have to be judged; false once its snapshot is behind the stream."""
        self.away = False
        """Whether another database owns the table now: nothing of it is published here."""

    @property
    def copying(self) -> bool:
        """Whether there is more of it to copy here."""
        return not self.away and not self.chunks.complete

    def encoder_for(self, relation: Relation) -> Encoder:
        """Return the encoder for rows of these columns; registers their schemas the first time.

        Raises IncompatibleSchema when readers of the topic could not read both.
        """
        identity = (relation.columns, relation.replica_identity, relation.identity_columns)
        if identity not in self._encoders:
            table = self.table
            self._encoders[identity] = Encoder(
                relation,
                table.gitlab_schema,
                table.key,
                database=self.source,
                key_schema_id=self._registry.register(
                    f"{table.topic}-key", key_schema(relation, table.gitlab_schema, table.key)
                ),
                value_schema_id=self._registry.register(
                    f"{table.topic}-value", value_schema(relation, table.gitlab_schema)
                ),
            )
        return self._encoders[identity]

    def add_chunk(self, after: Key | None, upto: Key | None, chunk: ChunkRows, position: Position, size: int) -> None:
        """Publish a chunk's rows at the stream's standing position and note it as copied.

        `size` is the rows a full chunk has, for the estimate of how many there will be.
        """
        encoder = self.encoder_for(chunk.relation)
        prefix = encoder.copy_prefix(
            lsn=position.commit_lsn, ordinal=position.ordinal, ts_ms=time.time_ns() // 1_000_000
        )
        keys, values = encoder.encode_copy_chunk(chunk.data, prefix)
        self.waiting += [{"key": key, "value": value} for key, value in zip(keys, values, strict=True)]
        self.chunks.copied(Chunk(after, upto, chunk.snapshot, chunk.lsn))
        done = self.chunks.complete
        chunks_done = self.state.chunks_done + 1
        estimated = -(-self.table.estimated_rows // size)
        self._update(
            rows=self.state.rows + chunk.rows,
            chunks_done=chunks_done,
            chunks=chunks_done if done else max(chunks_done + 1, estimated),
        )

    def settle(self, lsn: Lsn) -> bool:
        """Forget the snapshots of chunks that the stream has passed.

        Returns whether the state changed since the last call, by that or by a restart, and has to be recorded.
        """
        if not self.judging or not (self.chunks.passed(lsn) or self._restarted):
            return False
        self._restarted = False
        self.judging = not self.chunks.settled
        self._update()
        return True

    def restart(self) -> None:
        """Start the snapshot again: the table was truncated while it was judged."""
        self.chunks.restart()
        self._restarted = True
        self._update(rows=0, chunks_done=0, chunks=0)

    def publishes(self, texts: tuple[bytes, ...], xid: int, commit_lsn: Lsn) -> bool:
        """Whether an event on the row with this key goes to the topic; asked only while `judging`."""
        return self.chunks.publishes(comparable_key(self.table, texts), xid, commit_lsn)

    def take(self) -> list[Record]:
        """Return the waiting records and forget them."""
        records, self.waiting = self.waiting, []
        return records

    def _update(self, **changes: int) -> None:
        copied = tuple(
            ChunkState(
                after=key_texts(chunk.after),
                upto=key_texts(chunk.upto),
                snapshot=str(chunk.snapshot) if chunk.snapshot else None,
                lsn=chunk.lsn,
            )
            for chunk in self.chunks.chunks
        )
        values: Mapping[str, object] = {**changes, "done": self.chunks.complete, "copied": copied}
        self.state = self.state.model_copy(update=values)

    def _key(self, texts: tuple[str, ...] | None) -> Key | None:
        return None if texts is None else comparable_key(self.table, tuple(text.encode() for text in texts))
