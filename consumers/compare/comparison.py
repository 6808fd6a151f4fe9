"""Compares a table with its topic, row by row, while both are live.

First by checksums: the topic is folded up to its current ends and compared with the table's ranges. Keys that differ,
because of a fault or because they were changed meanwhile, are read again under one snapshot S, whose WAL position is
read after it, and compared once the stream has passed that position: then every transaction that S sees is in the
topic. A key is judged only if its last event is from before S: it committed before that position, and its transaction,
however old, is visible to S; or the event has no transaction, and its record was in the topic before S was taken. The
other keys were changed meanwhile, and are compared again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from consumers.compare.table_rows import RANGE_BYTES, Connection, TableRows
from consumers.compare.topic_rows import Latest, TopicRows
from consumers.delivery.topics import schemas_of
from consumers.operations.start_offsets import first_key
from infra.postgres import connect
from infra.postgres.heartbeat import beat
from infra.postgres.moments import next_xid
from infra.schema_registry.topic_registry import open_registry
from infra.service import log
from infra.settings.model import Settings
from infra.settings.table_labels import TableLabels
from infra.state.positions import Positions
from schemas.avro import columns_of
from schemas.codec.decoder import Decoder
from schemas.errors import HeadraceError, Interrupted, Malformed, UsageError
from schemas.events import UNCHANGED, ChangeEvent, Op, Source
from schemas.positions import Position
from schemas.topics import table_topic
from schemas.wire import split_wire
from schemas.xid_snapshot import Hidden, Moment

_RANGE_ROWS: Final = 50_000
_MOST: Final = 200_000
"""With more differing keys, the topic belongs to another table."""
_ROUNDS: Final = 10
"""The comparisons of a key that keeps changing."""
_STREAM_SECONDS: Final = 60.0


class TopicDiffers(HeadraceError):
    """Re-snapshot them with --repair; remove extra rows of the topic with `headrace snapshot TABLE --from-scratch`."""


@dataclass(slots=True)
class Comparison:
    """The result of a comparison, with keys as their columns; `unsettled` keys changed during every comparison."""

    table: str
    database: str
    rows: int = 0
    looked_at_again: int = 0
    missing: list[dict[str, object]] = field(default_factory=list)
    extra: list[dict[str, object]] = field(default_factory=list)
    differing: list[dict[str, object]] = field(default_factory=list)
    columns: list[list[str]] = field(default_factory=list)
    """The columns that differ, for each key in `differing`."""
    unsettled: int = 0

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing or self.extra or self.differing)


def compare(settings: Settings, database: str, table: str, stopping: threading.Event) -> Comparison:
    """Compare a source's table with its topic; write heartbeats and nothing else.

    Raises UsageError if the table or the topic does not exist, and HeadraceError if the producer makes no progress or
    most rows differ. Needs about 200 bytes of memory per row.
    """
    section = settings.database(database)
    gitlab_schema = TableLabels(database, section).of(table)
    schema, _, name = table.partition(".")
    topic = table_topic(settings.prefix, gitlab_schema, database, schema, name)
    look_up = schemas_of(open_registry(settings))
    key = first_key(settings.kafka, topic)
    if key is None:
        raise UsageError(f"topic {topic} has no events", remedy="start its producer first")
    with connect.session(section, name=f"verify {table}", reading=True) as connection:
        rows = TableRows(connection, table, gitlab_schema, columns_of(look_up(split_wire(key)[0])))
        in_topic = TopicRows(settings.kafka, topic, look_up)
        comparing = _Comparing(settings, database, table, connection, rows, in_topic, _Decoders(look_up), stopping)
        return comparing.run()


class _Decoders(dict[int, Decoder]):
    def __init__(self, look_up: Any) -> None:
        super().__init__()
        self._look_up = look_up

    def __missing__(self, schema_id: int) -> Decoder:
        self[schema_id] = Decoder(self._look_up(schema_id))
        return self[schema_id]


@dataclass(frozen=True, slots=True)
class _Sight:
    """What rows read at a moment show, like `Moment.shows`, but for transactions of any age."""

    moment: Moment
    hidden: Hidden

    def shows(self, source: Source) -> bool:
        return source.position.commit_lsn < self.moment.lsn and self.hidden.full(source.xid) is None


class _Comparing:
    def __init__(
        self,
        settings: Settings,
        database: str,
        table: str,
        connection: Connection,
        rows: TableRows,
        topic: TopicRows,
        decoders: _Decoders,
        stopping: threading.Event,
    ) -> None:
        self._database = database
        self._connection = connection
        self._rows = rows
        self._topic = topic
        self._decoders = decoders
        self._stopping = stopping
        self._positions = Positions(settings.prefix, settings.kafka)
        self._result = Comparison(table, database)
        self._log = log.get(table=table, database=database)

    def run(self) -> Comparison:
        def check() -> None:
            if self._stopping.is_set():
                raise Interrupted("the comparison was stopped")

        self._refuse_unread()
        sums = self._topic.checksums(self._topic.ends(), self._rows.row_fields)
        again: list[bytes] = []
        for keys, rows in self._rows.ranges(_RANGE_ROWS):
            check()
            self._result.rows += len(keys)
            again += [key for key, row in zip(keys, rows, strict=True) if sums.pop(key, None) != hash(row)]
        again += sums
        del sums
        self._result.looked_at_again = len(again)
        if len(again) > _MOST:
            raise TopicDiffers(f"{len(again):,} of {self._result.rows:,} rows differ from the topic")
        for _ in range(_ROUNDS):
            if not again:
                break
            check()
            again = self._compare_again(again, check)
        self._result.unsettled = len(again)
        return self._result

    def _refuse_unread(self) -> None:
        state = self._positions.sources().get(self._database)
        snapshot = state.snapshots.get(self._result.table) if state else None
        if snapshot is None:
            raise UsageError(
                f"no producer of {self._database} has snapshotted {self._result.table}",
                remedy=f"start it with `headrace produce {self._database}`",
            )
        if not snapshot.done:
            raise HeadraceError(
                f"the snapshot of {self._result.table} is not done: {snapshot.chunks_done} of {snapshot.chunks} chunks",
                remedy="compare once `headrace status` shows it done",
            )

    def _compare_again(self, keys: list[bytes], check: Any) -> list[bytes]:
        """Judge the keys that can be judged now; return the others."""
        left = []
        while keys:
            before = self._topic.ends()
            rows, looked, moment = self._rows.rows(keys, check)
            sight = _Sight(moment, Hidden(moment.snapshot, self._wait_for_stream(moment)))
            latest, later, truncates = self._topic.latest(self._topic.ends(), set(keys[:looked]), RANGE_BYTES)
            truncated = max((self._event(value).source.position for value in truncates), default=None)
            for key in keys[:looked]:
                if key not in later and not self._judge(key, rows.get(key), latest.get(key), before, sight, truncated):
                    left.append(key)
            keys = [*later, *keys[looked:]]
        return left

    def _wait_for_stream(self, moment: Moment) -> int:
        """Wait until the stream has passed the moment; return a transaction id assigned after it."""
        # The heartbeat gives the stream of an idle source something to pass.
        with self._connection.transaction():
            beat(self._connection)
            xid = next_xid(self._connection)
        deadline = time.monotonic() + _STREAM_SECONDS
        while True:
            state = self._positions.sources().get(self._database)
            stream = state.stream if state else None
            if stream is not None and stream.confirmed_lsn >= moment.lsn:
                return xid
            if time.monotonic() > deadline:
                raise HeadraceError(
                    f"cannot compare rows that differ: the producer of {self._database} makes no progress",
                    remedy=f"start it with `headrace produce {self._database}`, or find out why it lags",
                )
            if self._stopping.wait(0.05):
                raise Interrupted("the comparison was stopped")

    def _judge(
        self,
        key: bytes,
        row: bytes | None,
        last: Latest | None,
        before: Mapping[int, int],
        sight: _Sight,
        truncated: Position | None,
    ) -> bool:
        """Record the difference, if there is one; return whether the key could be judged."""
        event: ChangeEvent | None = None
        unreadable = False
        if last is not None and last.value is not None:
            try:
                event = self._event(last.value)
            except Malformed:
                unreadable = True
        was_there = last is None or last.offset < before.get(last.partition, 0)
        seen = was_there if event is None or event.source.xid is None else sight.shows(event.source)
        if not seen:
            return False
        if event is not None and (
            event.op is Op.DELETE or (truncated is not None and event.source.position < truncated)
        ):
            event = None
        columns = self._rows.key_of(key)
        after = event.after if event is not None else None
        if row is None and (after is not None or unreadable):
            self._result.extra.append(columns)
        elif row is not None and after is None and not unreadable:
            self._result.missing.append(columns)
        elif row is not None:
            wrong = ["unreadable"] if after is None else _differing(self._rows.row_of(row), after)
            if wrong:
                self._result.differing.append(columns)
                self._result.columns.append(wrong)
        return True

    def _event(self, value: bytes) -> ChangeEvent:
        return self._decoders[split_wire(value)[0]].decode(value)


def _differing(row: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Return the columns that differ, among those that the event contains."""
    return [
        name
        for name, value in row.items()
        if name in after and after[name] is not UNCHANGED and after[name] != value and repr(after[name]) != repr(value)
    ]
