"""One captured table while it is published: its encoder, the rules of its snapshot, and the records that wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from infra import log
from infra.kafka import RECORD_BYTES
from infra.positions import ChunkState, ColumnState, SnapshotState
from infra.registry import IncompatibleSchema, Registry
from producers.chunks import Chunk, Key, TableChunks
from producers.schema_changes import (
    Followed,
    FollowedColumn,
    TableNow,
    TableStopped,
    filled_columns,
    follow,
    obstacle,
)
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
        largest: int = RECORD_BYTES,
        now: Callable[[], TableNow | None] = lambda: None,
    ) -> None:
        """`not_before` is kept with a snapshot that starts now; see SnapshotState.

        `largest` is how many bytes a record may have; `now` asks the catalog, None where it cannot tell.
        """
        self.source = source
        self.table = table
        self.partitions = partitions
        self.waiting: list[Record] = []
        self._registry = registry
        self._encoders: dict[tuple[object, ...], Encoder] = {}
        self._now = now
        self._changed = False
        self.largest = largest
        self.state = state or SnapshotState(source=source, table=table.name, topic=table.topic, not_before=not_before)
        self._followed: Followed = {
            each.name: FollowedColumn(each.number, each.type_oid, each.type_modifier) for each in self.state.columns
        }
        try:
            self.encoder_for(table.relation)
            copied = self.state.copied
        except (IncompatibleSchema, TableStopped) as error:
            self.stop(error.problem)
            # Of a table whose key changed the ledger could not be read.
            copied = ()
        self.chunks = TableChunks(
            Chunk(
                self._key(each.after),
                self._key(each.upto),
                Snapshot.parse(each.snapshot) if each.snapshot else None,
                each.lsn,
            )
            for each in copied
        )
        self.judging = not self.chunks.settled and not self.state.stopped
        """Whether events of this table have to be judged; false once its snapshot is behind the stream."""
        self._changed = False  # whoever makes a feed records its state
        self.away = False
        """Whether another database owns the table now: nothing of it is published here."""

    @property
    def copying(self) -> bool:
        """Whether there is more of it to copy here."""
        return not self.away and not self.state.stopped and not self.chunks.complete

    def encoder_for(self, relation: Relation) -> Encoder:
        """Return the encoder for rows of these columns; registers their schemas the first time.

        Raises IncompatibleSchema when readers of the topic could not read both, and TableStopped when what stands in
        the topic would be wrong beside them; see producers.schema_changes.
        """
        identity = (relation.qualified_name, relation.columns, relation.replica_identity, relation.identity_columns)
        if identity not in self._encoders:
            table = self.table
            followed = self._follow(relation)
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
            self._followed = followed
            columns = tuple(
                ColumnState(name=name, number=each.number, type_oid=each.type_oid, type_modifier=each.type_modifier)
                for name, each in followed.items()
            )
            self.state = self.state.model_copy(update={"columns": columns})
            self._changed = True
        return self._encoders[identity]

    def stop(self, reason: str) -> None:
        """Publish nothing more of the table: what is left out from here on makes its topic one to read anew."""
        self.state = self.state.model_copy(update={"stopped": reason})
        self._changed = True

    def _follow(self, relation: Relation) -> Followed:
        now = self._now()
        if (reason := obstacle(self.table, relation, self._followed, now)) is not None:
            raise TableStopped(reason)
        if filled := filled_columns(relation, self._followed, now):
            log.get(**{log.SOURCE: self.source, log.TABLE: self.table.name}).warning(
                "rows in the topic lack an added column until they are written again", columns=filled
            )
        return follow(relation, self._followed, now)

    def add_chunk(self, after: Key | None, upto: Key | None, chunk: ChunkRows, position: Position, size: int) -> None:
        """Publish a chunk's rows at the stream's standing position and note it as copied.

        `size` is the rows a full chunk has, for the estimate of how many there will be.
        """
        encoder = self.encoder_for(chunk.relation)
        prefix = encoder.copy_prefix(
            lsn=position.commit_lsn, ordinal=position.ordinal, ts_ms=time.time_ns() // 1_000_000
        )
        keys, values = encoder.encode_copy_chunk(chunk.data, prefix)
        if values and max(map(len, values)) + max(map(len, keys)) > self.largest:
            self._refuse_large(chunk, list(map(len, keys)), list(map(len, values)))
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
        passed = self.judging and self.chunks.passed(lsn)
        if not (passed or self._changed):
            return False
        self._changed = False
        self.judging = not self.chunks.settled and not self.state.stopped
        self._update()
        return True

    def restart(self) -> None:
        """Start the snapshot again: the table was truncated while it was judged."""
        self.chunks.restart()
        self._changed = True
        self._update(rows=0, chunks_done=0, chunks=0)

    def publishes(self, texts: tuple[bytes, ...], xid: int, commit_lsn: Lsn) -> bool:
        """Whether an event on the row with this key goes to the topic; asked only while `judging`."""
        return self.chunks.publishes(comparable_key(self.table, texts), xid, commit_lsn)

    def too_large(self, size: int, columns: Iterable[tuple[str, int]]) -> TableStopped:
        """Return the error for a row whose record has `size` bytes; `columns` are names and bytes."""
        largest = sorted(columns, key=lambda column: -column[1])[:3]
        named = ", ".join(f"{name} {length}" for name, length in largest)
        return TableStopped(
            f"a row makes a record of {size} bytes, where its topic takes {self.largest} (its key is"
            f" {', '.join(self.table.key)}; bytes of its largest columns: {named})"
        )

    def _refuse_large(self, chunk: ChunkRows, keys: list[int], values: list[int]) -> None:
        for line, key, value in zip(chunk.data.split(b"\n"), keys, values, strict=False):
            if key + value > self.largest:
                names = (column.name for column in chunk.relation.columns)
                raise self.too_large(key + value, zip(names, map(len, line.split(b"\t")), strict=True))

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
