"""Judges keys whose marks differ, each by its row and its last record, which are read again.

A difference of marks is a fault, or the key was changed meanwhile, or its record can only be compared by its columns.
The rows of a group of keys are read under one snapshot S, whose WAL position is read after it, and judged once the
stream has passed that position: then every transaction that S sees is in the topic. A key is judged only if its last
event is from before S: it committed before that position, and its transaction, however old, is visible to S; or the
event has no transaction, and its record was in the topic before S was taken. The other keys were changed meanwhile, and
are judged again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from consumers.compare import marks
from consumers.compare.marking import Difference, Marked
from consumers.compare.table_rows import RANGE_BYTES, Connection, TableRows
from consumers.compare.topic_rows import Latest, TopicRows
from infra.postgres.heartbeat import beat
from infra.postgres.moments import next_xid
from infra.state.positions import Positions
from schemas.codec.decoder import Decoder
from schemas.errors import HeadraceError, Interrupted, Malformed
from schemas.events import UNCHANGED, ChangeEvent, Op, Source
from schemas.positions import Position
from schemas.wire import HEADER_BYTES, split_wire
from schemas.xid_snapshot import Hidden, Moment

_GROUP: Final = 5_000
"""The most keys that are judged under one snapshot; fewer if their records are large."""
_ROUNDS: Final = 10
"""The comparisons of a key that keeps changing."""
_LOOKS: Final = 3
"""How often the record of a key is looked for that compaction removes meanwhile."""
_STREAM_SECONDS: Final = 60.0


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


@dataclass(frozen=True, slots=True)
class _Sight:
    """What rows read at a moment show, like `Moment.shows`, but for transactions of any age."""

    moment: Moment
    hidden: Hidden

    def shows(self, source: Source) -> bool:
        return source.position.commit_lsn < self.moment.lsn and self.hidden.full(source.xid) is None


class _Decoders(dict[int, Decoder]):
    def __init__(self, look_up: Callable[[int], Any]) -> None:
        super().__init__()
        self._look_up = look_up

    def __missing__(self, schema_id: int) -> Decoder:
        self[schema_id] = Decoder(self._look_up(schema_id))
        return self[schema_id]


class Judge:
    """Judges the keys of one comparison, and adds what it finds to `result`. `look_up` returns a schema by its id."""

    def __init__(
        self,
        result: Comparison,
        connection: Connection,
        rows: TableRows,
        topic: TopicRows,
        positions: Positions,
        look_up: Callable[[int], Any],
        stopping: threading.Event,
    ) -> None:
        self._result = result
        self._connection = connection
        self._rows = rows
        self._topic = topic
        self._positions = positions
        self._decoders = _Decoders(look_up)
        self._stopping = stopping

    def judge(self, marked: Marked) -> None:
        """Judge all differences of the marks."""
        for group in self._groups(marked):
            left = group
            for _ in range(_ROUNDS):
                if left:
                    left = self._compare(left, marked)
            self._result.unsettled += len(left)

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Interrupted("the comparison was stopped")

    def _groups(self, marked: Marked) -> Iterator[dict[bytes, Latest | None]]:
        """Yield the keys that differ, each with its last record before `marked.ends`, if it has one."""
        placed = {each.place: each for each in marked.differences if each.place is not None}
        recordless = [each for each in marked.differences if each.place is None]
        group: dict[bytes, Latest | None] = {}
        size = 0
        for _ in range(_LOOKS):
            found: set[int] = set()
            for place, key, latest in self._topic.at(placed):
                found.add(place)
                group[key] = latest
                size += len(latest.value or b"")
                if len(group) >= _GROUP or size >= RANGE_BYTES:
                    yield group
                    group, size = {}, 0
            gone = {each.key_hash: each for place, each in placed.items() if place not in found}
            if not gone:
                break
            # Compaction removed records since they were marked: the keys have later ones.
            found_later = self._topic.places(gone.keys(), marked.ends, marked.secret, self._check)
            placed = {place: gone.pop(key_hash) for key_hash, place in found_later.items()}
            recordless += gone.values()
        else:
            recordless += placed.values()
        for key in self._keys_of(recordless, marked):
            group[key] = None
            if len(group) >= _GROUP:
                yield group
                group = {}
        if group:
            yield group

    def _keys_of(self, differences: Sequence[Difference], marked: Marked) -> Iterator[bytes]:
        """Yield the keys that the table has and the topic has no record of, by reading their ranges again."""
        by_range: dict[int, set[int]] = {}
        for each in differences:
            if each.range is not None:
                by_range.setdefault(each.range, set()).add(each.key_hash)
        for number, hashes in sorted(by_range.items()):
            for keys in self._rows.keys_between(*marked.range(number)):
                self._check()
                made = marks.table_marks(keys, [b""] * len(keys), 0, marked.secret)
                for key, (key_hash, _, _) in zip(keys, marks.MARK.iter_unpack(made), strict=True):
                    if key_hash in hashes:
                        yield key[HEADER_BYTES:]

    def _compare(self, group: Mapping[bytes, Latest | None], marked: Marked) -> dict[bytes, Latest | None]:
        """Judge the keys that can be judged now; return the others."""
        left: dict[bytes, Latest | None] = {}
        keys = list(group)
        while keys:
            before = self._topic.ends()
            rows, looked, moment = self._rows.rows(keys, self._check)
            sight = _Sight(moment, Hidden(moment.snapshot, self._wait_for_stream(moment)))
            known = {key: group[key] for key in keys[:looked]}
            latest, later, truncates = self._topic.latest(marked.ends, self._topic.ends(), known, RANGE_BYTES)
            positions = [self._event(value).source.position for value in truncates]
            truncated = max([*positions, *([] if marked.truncated is None else [marked.truncated])], default=None)
            for key in keys[:looked]:
                if key not in later and not self._judge(key, rows.get(key), latest.get(key), before, sight, truncated):
                    left[key] = group[key]
            keys = [*later, *keys[looked:]]
        return left

    def _wait_for_stream(self, moment: Moment) -> int:
        """Wait until the stream has passed the moment; return a transaction id assigned after it."""
        # The heartbeat gives the stream of an idle source something to pass.
        with self._connection.transaction():
            beat(self._connection)
            xid = next_xid(self._connection)
        database = self._result.database
        deadline = time.monotonic() + _STREAM_SECONDS
        while True:
            state = self._positions.sources().get(database)
            stream = state.stream if state else None
            if stream is not None and stream.confirmed_lsn >= moment.lsn:
                return xid
            if time.monotonic() > deadline:
                raise HeadraceError(
                    f"cannot compare rows that differ: the producer of {database} makes no progress",
                    remedy=f"start it with `headrace produce {database}`, or find out why it lags",
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
