"""A producer on a model database: the real Capture, feeds and rules, with Kafka and the slot as plain lists.

What a commit publishes is checked at once: see `ModelProducer.commit` and `ModelProducer.require_prefix`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from infra.state.positions import SnapshotState, StreamState
from infra.state.snapshot_requests import SnapshotRequest, read_request
from producers.publish.capture import Capture
from producers.publish.table_publisher import Record, TableFeed, TableTopic
from producers.snapshot.chunk_rules import Unseen
from producers.snapshot.reader import ChunkRows
from producers.snapshot.resnapshot_rules import KeyRange
from producers.snapshot.table_snapshot import Bounds
from producers.source.tables import CapturedTable
from producers.stream import messages as pg
from schemas.codec.decoder import Decoder, KeyDecoder
from schemas.events import UNCHANGED, ChangeEvent, Op
from schemas.positions import Lsn, Position
from schemas.wire import split_wire
from schemas.xid_snapshot import Moment, Snapshot
from tests.producers.captures import MemoryRegistry
from tests.producers.snapshot.model_database import RELATION, ModelDatabase, State

START = Position(Lsn(900), 0)

WAITS_FOR_CHUNKS = True
"""Whether the stream is read only while no chunk is: the rule of producers.session.loop's copy phase."""


REGISTRY = MemoryRegistry()


@cache
def _decoder(schema_id: int) -> Decoder:
    return Decoder(REGISTRY.schema(schema_id))


@cache
def _key_decoder(schema_id: int) -> KeyDecoder:
    return KeyDecoder(REGISTRY.schema(schema_id))


class ModelProducer:
    """One source with one table, its topic of one partition, and its slot.

    With `ordered` false the database sorts the keys as texts, which the producer does not know.
    """

    def __init__(self, database: ModelDatabase, *, ordered: bool) -> None:
        self.database = database
        self.table = CapturedTable(RELATION, "gitlab_main", "t.gitlab_main.t", ("id",), ordered)
        self._order: Callable[[int], Any] = int if ordered else str
        self.stream_record = self._first_record().model_dump_json()
        self.table_record: str | None = None
        self.rows: dict[int, tuple[object, object]] = {}
        """The topic, folded."""
        self.slot = Lsn(0)
        self.taken: list[SnapshotRequest] = []
        """The requests that were recorded as taken."""
        self._published: dict[int, Position] = {}
        self._content: dict[int, Position] = {}
        self._lacking: set[int] = set()
        """The keys whose last record omits a value."""
        self.start()

    # Its lifecycle.

    def start(self) -> None:
        """Start from the recorded state; calling it again models a kill."""
        stream = StreamState.model_validate_json(self.stream_record)
        snapshot = SnapshotState.model_validate_json(self.table_record) if self.table_record else None
        self.feed = TableFeed(
            "main",
            self.table,
            TableTopic(1),
            REGISTRY,
            snapshot,
            not_before=self.database.next_xid(),
            complete_rows=True,
        )
        self.capture = Capture([self.feed], stream.position, stream.confirmed_lsn, Unseen(stream.unseen))
        self._messages: deque[pg.Message] = deque()
        self._decoded = sum(each.end_lsn <= self.slot for each in self.database.log)
        self._read_versions: dict[int, Position] = {}
        self._reading: list[tuple[Bounds, int, ChunkRows, dict[int, Position]]] = []
        self._waiting: list[Record] = []
        if self.feed.state.from_scratch:
            self.feed.restart_from_scratch(self.capture.position, self.feed.state.not_before)
        self.commit()

    def stream(self, count: int) -> None:
        """Handle some messages, once no chunk is being read."""
        if WAITS_FOR_CHUNKS:
            while self._reading:
                self.end_chunk(0)
        for _ in range(count):
            if not self._messages and self._decoded < len(self.database.log):
                self._messages.extend(self.database.log[self._decoded].messages())
                self._decoded += 1
            if self._messages:
                self.capture.handle(self._messages.popleft())

    @property
    def behind(self) -> bool:
        """Whether the WAL has more."""
        return bool(self._messages) or self._decoded < len(self.database.log)

    def copy(self, rows: int) -> None:
        """Copy one chunk if the rules let it."""
        if self.begin_chunk(rows):
            self.end_chunk(-1)

    def begin_chunk(self, rows: int, cut: int | None = None) -> bool:
        """Read a chunk as a worker does, if the rules let it: see producers.session.loop, which does the same.

        The worker plans for `rows` rows, and has too many bytes after `cut` rows. Returns whether it reads.
        """
        self.commit()
        database, feed = self.database, self.feed
        seen = database.snapshot()
        visible = self.capture.unseen.visible_in(seen)
        by_key = feed.rows_due
        begun = by_key or feed.state.not_before <= seen.xmin
        if database.locked_whole or not (visible and feed.readable and begun):
            return False
        snapshot = database.snapshot()
        bounds = feed.copy.bounds_of_rows if by_key else feed.copy.bounds
        feed.copy.begin(bounds)
        state = database.state_at(Position(Lsn(0), 0), snapshot)
        keys = sorted((key for key in state if self._within(key, bounds)), key=self._order)
        if len(keys) >= rows and not by_key:
            feed.copy.planned(bounds, (str(keys[rows - 1]),))
        # A read by key ends only where there are too many bytes.
        most = min(rows, cut or rows)
        upto = (str(keys[most - 1]),) if len(keys) > most or (len(keys) == rows and not by_key) else None
        keys = keys[:most]
        data = b"".join(b"%d\t%d\t%d\n" % (key, *state[key]) for key in keys)
        chunk = ChunkRows(data, len(keys), RELATION, Moment(snapshot, Lsn(database.insert_lsn)), upto)
        versions = {key: database.versions(snapshot)[key] for key in keys}
        self._reading.append((bounds, rows, chunk, versions))
        return True

    def end_chunk(self, which: int) -> None:
        """Publish a chunk that a worker has read, if there is any; `which` chooses one."""
        if not self._reading:
            return
        bounds, rows, chunk, self._read_versions = self._reading.pop(which % len(self._reading))
        self.feed.copy.end(bounds)
        if bounds.keys:
            self.feed.add_rows(bounds.keys, chunk, self.capture.position)
        else:
            self.feed.add_chunk(chunk.upto, chunk, self.capture.position, rows, bounds)
        self.commit()

    def commit(self, *, confirms: bool = True) -> None:
        """Publish pending records with the position; if killed before it is `confirmed`, the slot does not advance."""
        capture, feed = self.capture, self.feed
        self._waiting += feed.take()
        requests = [read_request(row) for row in capture.take_requests()]
        for request in requests:
            if request.from_scratch:
                feed.ask_from_scratch()
            else:
                feed.ask(KeyRange(request.first, request.last), self.database.next_xid())
        capture.settle()
        self._waiting += feed.take()
        if capture.unseen.xids:
            capture.unseen.visible_in(self.database.snapshot())
        records, self._waiting = self._waiting, []
        for record in records:
            self._publish(record)
        self.taken += requests
        self._read_versions = {}
        self.table_record = feed.state.model_dump_json()
        self.stream_record = self._record().model_dump_json()
        if confirms:
            self.slot = capture.confirmed
        self.require_prefix()
        if feed.state.from_scratch:
            self.start()

    # Invariants.

    def require_prefix(self) -> None:
        """Fail unless the topic is the table as far as it is copied: at the stream's position, or as a chunk saw it."""
        feed, position = self.feed, self.capture.position
        at_position = self.database.state_at(position, None)
        state = feed.state
        remembered = feed.copy.remembered
        expected: State = {}
        rows = self.rows
        if remembered is not None:
            seen = self.database.state_at(position, remembered.moment.snapshot)
            known = {key for key in range(100) if self._message_key(key) in remembered.keys}
            expected = {key: value for key, value in at_position.items() if key not in known}
            expected.update({key: value for key, value in seen.items() if key in known})
            # A row missing from the chunk whose delete is still to come may be incomplete in a new topic.
            rows = {key: row for key, row in rows.items() if key in seen or UNCHANGED not in row}
            expected = {key: value for key, value in expected.items() if key in rows or key in seen}
        elif state.reread is not None:
            expected = at_position
        else:
            for chunk in state.copied:
                bounds = Bounds(after=chunk.after, last=chunk.upto)
                snapshot = Snapshot.parse(chunk.snapshot) if chunk.snapshot else None
                shown = self.database.state_at(position, snapshot)
                expected.update({key: value for key, value in shown.items() if self._within(key, bounds)})
        expected = self._with_rows(expected, rows)
        if state.reread is not None and not state.done:
            # Beyond the copied part of a first snapshot the topic has whatever was written since.
            bounds = Bounds(last=state.reread.after)
            copied = state.reread.after is not None or state.reread.read
            expected = {key: value for key, value in expected.items() if copied and self._within(key, bounds)}
            rows = {key: row for key, row in rows.items() if copied and self._within(key, bounds)}
        assert rows == expected, f"at {position} the topic is not the table: {rows} != {expected}"

    def _with_rows(self, expected: State, rows: Mapping[int, tuple[object, object]]) -> State:
        """Return the expected topic while or after rows are read by key."""
        incomplete, position = self.feed.copy.incomplete, self.capture.position
        with_rows = dict(expected)
        gone: set[int] = set()
        if incomplete.remembered is not None:
            seen = self.database.state_at(position, incomplete.remembered.moment.snapshot)
            known = {key for key in range(100) if self._message_key(key) in incomplete.remembered.keys}
            of_copy = self.feed.copy.remembered
            if of_copy is not None and of_copy.moment.lsn > incomplete.remembered.moment.lsn:
                known = {key for key in known if self._message_key(key) not in of_copy.keys}
            with_rows = {key: value for key, value in with_rows.items() if key not in known}
            with_rows.update({key: value for key, value in seen.items() if key in known})
            gone = set(range(100)) - seen.keys()
        for key, row in rows.items():
            if UNCHANGED in row and key in with_rows:
                assert (str(key),) in incomplete.state.keys or key in gone, f"row {key} is not to be read"
                with_rows[key] = (with_rows[key][0], UNCHANGED)  # type: ignore[assignment]
        return with_rows

    def require_equal(self) -> None:
        """Fail unless the topic, folded, is the table, and the last record of each key is the row."""
        assert not self._lacking, f"the last records of {self._lacking} lack a value"
        table = self.database.state(lambda _: True)
        assert self.rows == table, f"the topic is {self.rows}, the table {table}"

    def _publish(self, record: Record) -> None:
        value = record["value"]
        if value is None:
            return
        event = _decoder(split_wire(value)[0]).decode(value)
        decoded = _key_decoder(split_wire(record["key"])[0]).decode_key(record["key"])
        if event.op is Op.TRUNCATE:
            self.rows.clear()
            self._content.clear()
            self._lacking.clear()
            return
        key = decoded["id"]
        assert isinstance(key, int)
        self._require_order(key, event)
        self._lacking.discard(key)
        if event.op is Op.DELETE:
            self.rows.pop(key, None)
        else:
            assert event.after is not None
            before = self.rows.get(key, (UNCHANGED, UNCHANGED))
            n, big = event.after["n"], event.after["big"]
            if big is UNCHANGED:
                self._lacking.add(key)
            known = big is not UNCHANGED or before[1] is not UNCHANGED
            self.rows[key] = (n, before[1] if big is UNCHANGED else int(str(big)))
            # Without ranges, an update may come before the chunk, or be of a row that no chunk shows.
            moved = event.op is Op.CREATE or before[0] is not UNCHANGED
            assert not self.table.ordered or known or moved, f"a value of {key} that the topic never had"

    def _require_order(self, key: int, event: ChangeEvent) -> None:
        """Fail unless a key's positions grow, and what its records show never goes back in time."""
        position = event.source.position
        last = self._published.get(key)
        assert last is None or last < position, f"{event.op} of {key} at {position} is behind {last}"
        self._published[key] = position
        content = self._read_versions[key] if event.op is Op.READ else position
        shown = self._content.get(key)
        again = event.op is Op.READ and content == shown
        assert shown is None or shown < content or again, f"{event.op} of {key} shows {content}, after {shown}"
        self._content[key] = content

    def _message_key(self, key: int) -> bytes:
        return self.feed._message_key((b"%d" % key,))

    def _within(self, key: int, bounds: Bounds) -> bool:
        order = self._order
        return (
            (not bounds.keys or (str(key),) in bounds.keys)
            and (bounds.first is None or order(key) >= order(int(bounds.first[0])))
            and (bounds.after is None or order(key) > order(int(bounds.after[0])))
            and (bounds.last is None or order(key) <= order(int(bounds.last[0])))
        )

    def _record(self) -> StreamState:
        capture = self.capture
        return self._first_record().model_copy(
            update={
                "commit_lsn": capture.position.commit_lsn,
                "ordinal": capture.position.ordinal,
                "confirmed_lsn": capture.confirmed,
                "unseen": capture.unseen.xids,
            }
        )

    @staticmethod
    def _first_record() -> StreamState:
        return StreamState(
            source="main",
            instance="model",
            slot="model",
            system_identifier="1",
            commit_lsn=START.commit_lsn,
            ordinal=START.ordinal,
            confirmed_lsn=Lsn(START.commit_lsn + 1),
            ts_ms=0,
        )
