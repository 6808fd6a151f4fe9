"""Whether a topic holds what its table holds, row by row, while both are live.

First checksums: the topic is folded up to its present ends, and the table's ranges are compared with that. Keys that
differ, because of a fault or because they were changed meanwhile, are looked at again, all under one snapshot S whose
log position is noted behind it, once the stream has passed that position: every transaction that S sees is in the
topic then. A key is judged only if its last event is from before S: its commit is before that position and its
transaction, however old, is none that S hides; or, of an event without one, the record was in the topic before S was
taken. The others were changed meanwhile, and are looked at once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from consumers.compare.table_rows import RANGE_BYTES, Connection, Moment, TableRows
from consumers.compare.topic_rows import Latest, TopicRows
from consumers.delivery.topics import schemas_of
from consumers.operations.start_offsets import first_key
from infra.postgres import connect
from infra.postgres.heartbeat import beat
from infra.schema_registry.topic_registry import open_registry
from infra.service import log
from infra.settings.model import Settings
from infra.state.positions import Positions
from schemas.avro import columns_of
from schemas.decoder import Decoder
from schemas.errors import HeadraceError, Interrupted, Malformed, UsageError
from schemas.events import UNCHANGED, ChangeEvent, Op, Source
from schemas.gitlab_schemas import gitlab_schema_of
from schemas.positions import Lsn, Position
from schemas.topics import table_topic
from schemas.wire import split_wire
from schemas.xid_snapshot import Hidden, Snapshot

_RANGE_ROWS: Final = 50_000
_MOST: Final = 200_000
"""Of so many differing keys the topic is not this table's."""
_ROUNDS: Final = 10
"""How often a key that changes all the while is looked at again."""
_STREAM_SECONDS: Final = 60.0


class TopicDiffers(HeadraceError):
    """Read what differs again with --repair; rows that only the topic has go with `headrace snapshot TABLE --anew`."""


@dataclass(slots=True)
class Comparison:
    """What came out; keys as their columns. `unsettled` were changed each time they were looked at."""

    table: str
    database: str
    rows: int = 0
    looked_at_again: int = 0
    missing: list[dict[str, object]] = field(default_factory=list)
    extra: list[dict[str, object]] = field(default_factory=list)
    differing: list[dict[str, object]] = field(default_factory=list)
    columns: list[list[str]] = field(default_factory=list)
    """For each differing key the columns that differ."""
    unsettled: int = 0

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing or self.extra or self.differing)


def compare(settings: Settings, database: str, table: str, stopping: threading.Event) -> Comparison:
    """Compare a source's table with its topic; writes one heartbeat into the log, and nothing else.

    Raises UsageError when one of them is not there, and HeadraceError when the producer does not go on or nearly
    nothing agrees. Needs about 200 bytes of memory a row.
    """
    section = settings.database(database)
    gitlab_schema = gitlab_schema_of(table, section.gitlab_schemas, section.table_schemas)
    schema, _, name = table.partition(".")
    topic = table_topic(settings.prefix, gitlab_schema, database, schema, name)
    look_up = schemas_of(open_registry(settings))
    key = first_key(settings.kafka, topic)
    if key is None:
        raise UsageError(f"topic {topic} has no events", remedy="start its producer first")
    dsn = section.dsn.get_secret_value()
    with (
        connect.translated(dsn),
        closing(connect.connect(dsn, name=f"verify {table}", reading=True)) as connection,
    ):
        rows = TableRows(connection, table, gitlab_schema, columns_of(look_up(split_wire(key)[0])))
        in_topic = TopicRows(settings.kafka, topic, look_up)
        comparing = _Comparing(settings, database, table, connection, rows, in_topic, _Decoders(look_up), stopping)
        return comparing.run()


def source_of(settings: Settings, table: str) -> str:
    """Return the database that is the source of `table`; raises UsageError when that is none or several."""
    names = [
        name
        for name, database in settings.databases.items()
        if any(table == pattern or fnmatchcase(table, pattern) for pattern in database.tables)
    ]
    if len(names) == 1:
        return names[0]
    raise UsageError(
        f"{table} is captured from {', '.join(names) or 'no database of the settings'}",
        remedy="name it with --database" if names else "list it under databases.<name>.tables",
    )


class _Decoders(dict[int, Decoder]):
    def __init__(self, look_up: Any) -> None:
        super().__init__()
        self._look_up = look_up

    def __missing__(self, schema_id: int) -> Decoder:
        self[schema_id] = Decoder(self._look_up(schema_id))
        return self[schema_id]


@dataclass(frozen=True, slots=True)
class _Sight:
    """What a snapshot shows: what was committed before the log position behind it, but for what it hides."""

    lsn: Lsn
    hidden: Hidden

    def shows(self, source: Source) -> bool:
        return source.position.commit_lsn < self.lsn and self.hidden.full(source.xid) is None


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
        def told() -> None:
            if self._stopping.is_set():
                raise Interrupted("the comparison was stopped")

        self._refuse_unread()
        sums = self._topic.checksums(self._topic.ends(), self._rows.row_fields)
        again: list[bytes] = []
        for keys, rows in self._rows.ranges(_RANGE_ROWS):
            told()
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
            told()
            again = self._look_again(again, told)
        self._result.unsettled = len(again)
        return self._result

    def _refuse_unread(self) -> None:
        state = self._positions.sources().get(self._database)
        snapshot = state.snapshots.get(self._result.table) if state else None
        if snapshot is None:
            raise UsageError(
                f"no producer of {self._database} has read {self._result.table}",
                remedy=f"start it with `headrace produce {self._database}`",
            )
        if not snapshot.done:
            raise HeadraceError(
                f"{self._result.table} is not read to its end: {snapshot.chunks_done} of {snapshot.chunks} chunks",
                remedy="compare when `headrace status` shows its snapshot done",
            )

    def _look_again(self, keys: list[bytes], told: Any) -> list[bytes]:
        """Judge the keys that can be judged now; return the others."""
        left = []
        while keys:
            before = self._topic.ends()
            rows, looked, moment = self._rows.rows(keys, told)
            hidden = Hidden(Snapshot.parse(moment.snapshot), self._wait_for_stream(moment))
            latest, later, truncates = self._topic.latest(self._topic.ends(), set(keys[:looked]), RANGE_BYTES)
            truncated = max((self._event(value).source.position for value in truncates), default=None)
            sight = _Sight(moment.lsn, hidden)
            for key in keys[:looked]:
                if key not in later and not self._judge(key, rows.get(key), latest.get(key), before, sight, truncated):
                    left.append(key)
            keys = [*later, *keys[looked:]]
        return left

    def _wait_for_stream(self, moment: Moment) -> int:
        """Wait until the stream has passed the moment; return a transaction id given out behind it."""
        # Of the heartbeat's own making, so that an idle source has something to pass.
        with self._connection.transaction():
            beat(self._connection)
            row = self._connection.execute("SELECT pg_current_xact_id()::text").fetchone()
        assert row is not None
        deadline = time.monotonic() + _STREAM_SECONDS
        while True:
            state = self._positions.sources().get(self._database)
            stream = state.stream if state else None
            if stream is not None and stream.confirmed_lsn >= moment.lsn:
                return int(row[0])
            if time.monotonic() > deadline:
                raise HeadraceError(
                    f"the producer of {self._database} does not go on, and rows that differ cannot be judged without",
                    remedy=f"start it with `headrace produce {self._database}`, or see why it is behind",
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
        """Note a difference, if there is one; return whether the key could be judged."""
        told: ChangeEvent | None = None
        unreadable = False
        if last is not None and last.value is not None:
            try:
                told = self._event(last.value)
            except Malformed:
                unreadable = True
        there_before = last is None or last.offset < before.get(last.partition, 0)
        seen = there_before if told is None or told.source.xid is None else sight.shows(told.source)
        if not seen:
            return False
        if told is not None and (told.op is Op.DELETE or (truncated is not None and told.source.position < truncated)):
            told = None
        columns = self._rows.key_of(key)
        after = told.after if told is not None else None
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


def _differing(row: Mapping[str, object], told: Mapping[str, object]) -> list[str]:
    """Return the columns that differ, of those that the event tells."""
    return [
        name
        for name, value in row.items()
        if name in told and told[name] is not UNCHANGED and told[name] != value and repr(told[name]) != repr(value)
    ]
