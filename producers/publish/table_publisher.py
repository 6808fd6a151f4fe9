"""One captured table during publishing: its encoder, the state of its snapshot, and its pending records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import accumulate
from typing import Any, Final, TypeVar

from infra.kafka.clients import RECORD_BYTES
from infra.postgres.key_order import order_name
from infra.schema_registry.topic_registry import IncompatibleSchema, Registry
from infra.service import log
from infra.state.positions import FormState, SnapshotState
from producers.publish.silent_changes import SilentChange, merged, silent_change
from producers.publish.table_encoders import TableEncoders
from producers.snapshot.reader import ChunkRows, sorts_otherwise
from producers.snapshot.resnapshot_rules import KeyRange, RememberedChunk, Texts
from producers.snapshot.table_snapshot import Bounds, TableCopy
from producers.source.partitions import Partitions
from producers.source.schema_changes import TableNow, TableStopped
from producers.source.table_keys import spread
from producers.source.tables import CapturedTable, comparable_key
from schemas.codec.encoder import Encoder
from schemas.events import Op, Relation
from schemas.lazy_dataclass import dataclass
from schemas.positions import Lsn, Position
from schemas.wire import HEADER_BYTES

_COPY_OVERHEAD: Final = 2 << 20
"""COPY's line of a row may exceed twice its record by this much: texts at most double, and numbers are short."""

_REMEMBERED_BYTES: Final = 512 * 1024
"""Limit for the keys of a remembered chunk: in base64 it stays below Kafka's default of a megabyte."""

_SEEN_AGAIN: Final = 1_000_000
"""Unchanged partitions are recorded again after this many transactions; see has_partitions."""

Made = TypeVar("Made")
Record = dict[str, Any]
"""A record for confluent-kafka's produce_batch: `key`, `value`, optionally `partition`."""


@dataclass(frozen=True)
class TableTopic:
    """The topic of a table: its number of partitions, and the largest record in bytes."""

    partitions: int
    largest: int = RECORD_BYTES


class TableFeed:
    """The state of one table in a producer. Records collect in `waiting` until the producer sends them."""

    def __init__(
        self,
        source: str,
        table: CapturedTable,
        topic: TableTopic,
        registry: Registry,
        state: SnapshotState | None,
        *,
        not_before: int,
        complete_rows: bool = False,
        now: Callable[[], TableNow | None] = lambda: None,
    ) -> None:
        """`not_before` is recorded with a snapshot that starts now; see SnapshotState.

        `now` queries the catalog; None if that is not known. With `complete_rows`, the row of every record that omits a
        value is read; without it, only rows with a new key.
        """
        self.source = source
        self.table = table
        self.partitions = topic.partitions
        self.waiting: list[Record] = []
        self._changed = False
        self.largest = topic.largest
        self.complete_rows = complete_rows
        before, initial = _initial_state(source, table, topic, state, not_before)
        comparable = partial(comparable_key, table) if table.ordered else None
        self.encoders = TableEncoders(source, table, registry, initial.columns, now, initial.registered)
        self.copy = TableCopy(initial.model_copy(update={"copied": (), "reread": None}), comparable)
        try:
            self.encoder_for(table.relation)
            order = order_name(table.order)
            ranges = initial.reread is not None or any(
                (each.after, each.upto) != (None, None) for each in initial.copied
            )
            if ranges and order != initial.order:
                raise TableStopped(sorts_otherwise(table))
            self.copy = TableCopy(
                initial.model_copy(
                    update={"columns": self.state.columns, "registered": self.state.registered, "order": order}
                ),
                comparable,
            )
        except (IncompatibleSchema, TableStopped) as error:
            # After a change of the key the recorded ranges cannot be read.
            self.stop(error.problem)
        self._seen = initial.partitions_seen
        self.leaves = frozenset(each.oid for each in self.state.partitions)
        """The oids of the partitions whose changes are published as the table's."""
        if before not in (None, topic.partitions) and not self.state.stopped:
            self.stop(spread(table.topic, before, topic.partitions))
        self.judging = self.copy.judging
        """Whether events have to be compared with the snapshot; false once the stream has passed it."""
        self.away = False
        """Whether another database owns the table now, so that it is not published here."""
        self.hidden = table.hidden is not None
        """Whether the role may not read its rows now: its events are published, the snapshot waits."""

    @property
    def longest_line(self) -> int:
        """The most bytes that COPY may send for a row: no record could be made of more."""
        return 2 * self.largest + _COPY_OVERHEAD

    @property
    def copying(self) -> bool:
        """Whether this source has rows of it left to read."""
        # The common case first: the copy phase goes through all tables for each one that it reads.
        return (not self.copy.complete or self.rows_due) and not (self.away or self.hidden or self.state.stopped)

    @property
    def rows_due(self) -> bool:
        """Whether rows whose last record omits a value are to be read now."""
        return self.copy.rows_due(time.monotonic())

    @property
    def rows_wait(self) -> bool:
        """Whether so many of those rows are pending that the stream has to wait for them."""
        return self.copying and self.copy.incomplete.many

    @property
    def readable(self) -> bool:
        """Whether the table's state allows a read now."""
        return self.copy.ready or self.rows_due

    @property
    def counts_transactions(self) -> bool:
        """Whether a later read has to wait for the transactions that the stream passes."""
        return self.judging or self.copy.incomplete.noted

    @property
    def state(self) -> SnapshotState:
        """The state to record for the table."""
        return self.copy.state

    def encoder_for(self, relation: Relation) -> Encoder:
        """Return the encoder for rows of these columns; see TableEncoders.encoder."""
        return self._noting(lambda: self.encoders.encoder(relation))

    def stream_encoder_for(self, relation: Relation, now: TableNow | None) -> Encoder:
        """Return the encoder for rows as the stream describes them now; see TableEncoders.stream_encoder."""
        return self._noting(lambda: self.encoders.stream_encoder(relation, now))

    def _noting(self, made: Callable[[], Made]) -> Made:
        before = self.encoders.columns, self.encoders.registered
        result = made()
        columns, registered = self.encoders.columns, self.encoders.registered
        if columns is not before[0] or registered is not before[1]:
            self.copy.note(columns=columns, registered=registered)
            self._changed = True
        return result

    def stop(self, reason: str) -> None:
        """Stop publishing the table: its topic lacks all later changes."""
        self.copy.note(stopped=reason)
        self._changed = True

    def add_chunk(
        self, upto: Texts | None, chunk: ChunkRows, position: Position, size: int, bounds: Bounds | None = None
    ) -> int:
        """Publish a chunk's rows just after the stream's current position, and mark it as copied up to `upto`.

        Returns the number of rows: where keys have to be remembered, as many as their record has room for. `size` is
        the number of rows in a full chunk, to estimate the number of chunks. `bounds` are those of the chunk, by
        default the next of the copy.
        """
        bounds = bounds or self.copy.bounds
        keys, values = self._encoded(chunk, position)
        if self.copy.remembers and (room := _room(keys)) < len(keys):
            upto = chunk.key_texts(room - 1, self.table.key)
            del keys[room:], values[room:]
        self.waiting += [{"key": key, "value": value} for key, value in zip(keys, values, strict=True)]
        remembered = [key[HEADER_BYTES:] for key in keys] if self.copy.remembers else ()
        self.copy.copied(bounds, upto, chunk.moment, remembered, len(keys))
        self.copy.expect(-(-self.table.estimated_rows // size) if self.copy.whole else 0)
        self._note()
        return len(keys)

    def add_rows(self, asked: Iterable[Texts], chunk: ChunkRows, position: Position) -> int:
        """Publish rows read by key just after the stream's current position; return their number.

        `asked` are the requested keys.
        """
        keys, values = self._encoded(chunk, position)
        self.waiting += [{"key": key, "value": value} for key, value in zip(keys, values, strict=True)]
        returned = frozenset(key[HEADER_BYTES:] for key in keys)
        if chunk.upto is not None:
            # It was cut short: missing rows may be gone, or still to be read.
            asked = [key for key in asked if self._message_key(tuple(text.encode() for text in key)) in returned]
        self.copy.read_rows(asked, RememberedChunk(returned, chunk.moment), time.monotonic())
        self._note()
        return len(keys)

    def _encoded(self, chunk: ChunkRows, position: Position) -> tuple[list[bytes], list[bytes]]:
        """Return keys and values of a chunk's rows, positioned just after the current position."""
        encoder = self.encoder_for(chunk.relation)
        # The next change may get the same ordinal, but not for these rows: the barrier makes them include it.
        prefix = encoder.copy_prefix(
            lsn=position.commit_lsn, ordinal=position.ordinal + 1, ts_ms=time.time_ns() // 1_000_000
        )
        keys, values = encoder.encode_copy_chunk(chunk.data, prefix)
        if values and max(map(len, values)) + max(map(len, keys)) > self.largest:
            self._refuse_large(chunk, list(map(len, keys)), list(map(len, values)))
        return keys, values

    def leaves_out(self, texts: tuple[bytes, ...]) -> None:
        """Note that the record just published for a key omits a value."""
        self.copy.leaves_out(tuple(text.decode() for text in texts))
        self._changed = True

    def repeat_for_rows(self, not_before: int) -> None:
        """Re-snapshot the table, since too many of its last records omit a value."""
        log.get(**{log.SOURCE: self.source, log.TABLE: self.table.name}).warning(
            "re-snapshotting table because too many records leave out a value"
        )
        self.copy.repeat_for_rows(not_before)
        self._note()

    def settle(self, lsn: Lsn) -> bool:
        """Forget the snapshots of chunks that the stream has passed.

        Returns whether the state changed since the last call and has to be recorded.
        """
        if self.judging and self.copy.passed(lsn):
            self._note()
        changed, self._changed = self._changed, False
        return changed

    def truncated(self, lsn: Lsn) -> None:
        """Note that the stream, which is at `lsn`, truncated the table during its snapshot.

        Its events between there and the position of the table's form may be older than the form.
        """
        self.copy.truncated()
        if lsn < self.state.form.lsn:
            self.copy.repeat(self.state.not_before)
        self._note()

    def silent_change(self, form: FormState) -> SilentChange | None:
        """Return the change of the table's values without events since its recorded form, None if there is none."""
        before = self.state.form
        if not before.columns:
            return None
        return silent_change(
            before, form, captured=self.encoders.captured, key=self.table.key, copying=self.copy.judging
        )

    def take_form(self, form: FormState, not_before: int) -> SilentChange | None:
        """Record the table's current form; return the change without events, if there was one.

        The table is then re-snapshotted, from scratch if its keys may have changed. `not_before` must be above every
        transaction that has begun.
        """
        change = self.silent_change(form)
        before = self.state.form
        noted = merged(before, form)
        if change is None and before.columns:
            # No value changed since the last check: the stream's rows since then are correct.
            noted = noted.model_copy(update={"lsn": before.lsn})
        self.copy.note(form=noted)
        if change is not None and change.keys:
            self.copy.note(from_scratch=True)
        elif change is not None:
            self.copy.repeat(not_before)
        self._note()
        return change

    def ask(self, asked: KeyRange, not_before: int) -> None:
        """Re-snapshot a range; see TableCopy.ask."""
        self.copy.ask(asked, not_before)
        self._note()

    def ask_from_scratch(self) -> None:
        """Re-snapshot the table from scratch at the next start of its source."""
        self.copy.note(from_scratch=True)
        self._note()

    def has_partitions(self, now: Partitions) -> None:
        """Record that the topic has the rows of these partitions, or soon will.

        If only `seen` differs, that is recorded with the next change, or after many transactions.
        """
        changed = self.state.partitions != now.states or now.seen - self._seen >= _SEEN_AGAIN
        self.copy.note(**_recorded(now))
        if changed:
            self._seen = now.seen
            self.leaves = frozenset(now.by_oid)
            self._changed = True

    def restart_from_scratch(self, position: Position, not_before: int) -> None:
        """Empty the topic just after the stream's current position, and restart the snapshot."""
        encoder = self.encoder_for(self.table.relation)
        now_ms = time.time_ns() // 1_000_000
        prefix = encoder.event_prefix(Op.TRUNCATE, lsn=position.commit_lsn, xid=None, ts_ms=now_ms, snapshot=True)
        self.empty(encoder.truncate(prefix, position.ordinal + 1, now_ms))
        self.copy.from_scratch(not_before)
        self.copy.note(order=order_name(self.table.order))
        self._note()

    def empty(self, value: bytes) -> None:
        """Add a truncate record to every partition, since each has rows of the table."""
        key = self._noting(self.encoders.truncate_key)
        self.waiting += [{"key": key, "value": value, "partition": number} for number in range(self.partitions)]

    def publishes(self, texts: tuple[bytes, ...], xid: int, commit_lsn: Lsn) -> bool:
        """Whether an event for the row with this key is published; called only while `judging`."""
        return self.copy.publishes(texts, lambda: self._message_key(texts), xid, commit_lsn)

    def too_large(self, size: int, columns: Iterable[tuple[str, int]]) -> TableStopped:
        """Return the error for a row whose record has `size` bytes; `columns` are names and bytes."""
        largest = sorted(columns, key=lambda column: -column[1])[:3]
        named = ", ".join(f"{name} {length}" for name, length in largest)
        return TableStopped(
            f"a row makes a record of {size} bytes, but its topic accepts {self.largest} (its key is"
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

    def _note(self) -> None:
        self._changed = True
        self.judging = self.copy.judging

    def _message_key(self, texts: tuple[bytes, ...]) -> bytes:
        """Return a row's message key, without the schema's id."""
        relation, places = self.table.relation, dict(zip(self.table.key, texts, strict=True))
        row = [places.get(column.name) for column in relation.columns]
        return self.encoder_for(relation).key(row)[HEADER_BYTES:]


def _initial_state(
    source: str, table: CapturedTable, topic: TableTopic, state: SnapshotState | None, not_before: int
) -> tuple[int | None, SnapshotState]:
    """Return the recorded number of the topic's partitions, and the state that the copy starts from."""
    fresh = SnapshotState(source=source, table=table.name, topic=table.topic, not_before=not_before)
    # From scratch, the topic is about to be emptied, and its recorded columns are void.
    initial = (
        fresh.model_copy(update={"done": True, "from_scratch": True})
        if state and state.from_scratch
        else state or fresh
    )
    if state is None or state.from_scratch:
        # Read before any row, so that later changes differ from the record.
        initial = initial.model_copy(update=_recorded(table.partitions))
    before = None if initial.from_scratch else initial.topic_partitions
    return before, initial.model_copy(update={"topic_partitions": before or topic.partitions})


def _recorded(partitions: Partitions) -> dict[str, object]:
    return {"partitions": partitions.states, "partitions_seen": partitions.seen}


def _room(keys: list[bytes]) -> int:
    """Return how many of the keys a record of the positions topic has room for, at least one."""
    ends = accumulate(map(len, keys))
    return max(1, sum(1 for end in ends if end <= _REMEMBERED_BYTES))
