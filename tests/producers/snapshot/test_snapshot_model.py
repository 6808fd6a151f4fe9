"""Random histories of a database and a producer: the snapshot rules hold, and each is needed.

The machine drives the real decision code (Capture, TableFeed and their parts) against a model database in
which commits are decoded before they are visible. `ModelProducer` checks every commit: the topic is the table as far
as it is copied, positions grow, and no key goes back in time.
"""

from __future__ import annotations

from types import ModuleType
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from infra.state.snapshot_requests import SnapshotRequest
from producers.publish import table_publisher
from producers.snapshot import incomplete_rows, table_snapshot
from tests.histories import TIMES, explore
from tests.producers.snapshot import model_producer
from tests.producers.snapshot.model_database import ModelDatabase, Transaction
from tests.producers.snapshot.model_producer import ModelProducer
from tests.producers.snapshot.without_rules import (
    AsksWithoutWaiting,
    AwaitsNothing,
    ForgetsChunksAtOnce,
    ForgetsKeysAtOnce,
    ForgetsRowsAtOnce,
    GivesRangesTwice,
    HoldsRequestsBack,
    JudgesBehindTheChunk,
    JudgesByOneMoment,
    LosesKeysWhenKilled,
    LosesRowsWhenKilled,
    MergesWithWhatIsNotPassed,
    NotesNothing,
    NotesWhatIsNotPublished,
    OverlooksTruncates,
    PublishesWhatAChunkShows,
    PublishesWhatIsNotCopied,
    PublishesWhatRowsShow,
    ReadsRowsNextToChunks,
    ReadsRowsWithoutWaiting,
    ReadsWhatIsRecordedAgain,
    RemembersNoKeys,
    RereadsAsIfForTheFirstTime,
    SkipsGaps,
    TakesEveryKeyForRemembered,
    TakesTheEndOfAGapForTheEndOfAll,
    forgets_keys_when_killed,
)

KEYS = st.sampled_from((1, 2, 3, 10, 11))
"""Some of them sort differently as texts than as numbers."""

SESSIONS = st.integers(0, 1)

ENDS = st.sampled_from(("open", "in the log", "in the log", "visible", "visible", "visible"))
"""How far a transaction goes after a statement."""


class SnapshotMachine(RuleBasedStateMachine):
    """Three sessions, one producer."""

    ordered: ClassVar[bool] = True

    @initialize(keys=st.sets(KEYS), copied=st.booleans())
    def a_table_with_rows(self, keys: set[int], copied: bool) -> None:
        self.database = ModelDatabase()
        self.asked: list[SnapshotRequest] = []
        self.sessions: dict[int, Transaction] = {}
        before = self.database.begin()
        for key in sorted(keys):
            self.database.write(before, key, None, keeps_big=False)
        self.database.commit(before)
        self.database.end(before)
        self.producer = ModelProducer(self.database, ordered=self.ordered)
        if copied:
            self._catch_up()

    def _session(self, number: int) -> Transaction | None:
        """The transaction that session `number` is in, a new one after its last; None while it commits."""
        found = self.sessions.get(number)
        if found is None or found not in self.database.running:
            found = self.sessions[number] = self.database.begin()
        return None if found.commit_lsn else found

    def _to(self, end: str, transaction: Transaction) -> None:
        if end != "open":
            self.database.commit(transaction)
        if end == "visible":
            self.database.end(transaction)

    @rule(session=SESSIONS, key=KEYS, other=st.none() | KEYS, keeps_big=st.booleans(), end=ENDS)
    def write(self, session: int, key: int, other: int | None, keeps_big: bool, end: str) -> None:
        if transaction := self._session(session):
            self.database.write(transaction, key, other, keeps_big=keeps_big)
            self._to(end, transaction)

    @rule(session=SESSIONS, key=KEYS)
    def write_what_is_decoded_before_it_is_visible(self, session: int, key: int) -> None:
        self.write(session, key, None, keeps_big=False, end="in the log")
        self._read_on()

    @rule(session=SESSIONS, key=KEYS, end=ENDS)
    def delete(self, session: int, key: int, end: str) -> None:
        if transaction := self._session(session):
            self.database.delete(transaction, key)
            self._to(end, transaction)

    @rule(session=SESSIONS, key=KEYS, end=ENDS)
    def truncate_and_insert(self, session: int, key: int, end: str) -> None:
        transaction = self._session(session)
        if transaction is not None and self.database.truncate(transaction):
            self.database.write(transaction, key, None, keeps_big=False)
            self._to(end, transaction)

    @rule(session=SESSIONS)
    def commit(self, session: int) -> None:
        found = self.sessions.get(session)
        if found in self.database.running and found is not None and not found.commit_lsn:
            self.database.commit(found)

    @rule(session=SESSIONS)
    def end(self, session: int) -> None:
        """A commit becomes visible; an uncommitted transaction is rolled back."""
        found = self.sessions.get(session)
        if found in self.database.running and found is not None:
            self.database.end(found)

    @rule(keys=st.lists(KEYS, min_size=2, max_size=4))
    def work(self, keys: list[int]) -> None:
        """One transaction after the other."""
        for key in keys:
            self.write(2, key, None, keeps_big=True, end="visible")

    @rule(count=st.integers(1, 7))
    def stream(self, count: int) -> None:
        self.producer.stream(count)

    @rule(count=st.integers(1, 7))
    def stream_and_publish(self, count: int) -> None:
        self.producer.stream(count)
        self.producer.commit()

    @rule(rows=st.integers(1, 5))
    def copy(self, rows: int) -> None:
        self.producer.copy(rows)

    @rule(rows=st.integers(1, 3), keys=st.lists(KEYS, min_size=2, max_size=4))
    def copy_before_and_after_work(self, rows: int, keys: list[int]) -> None:
        self.producer.copy(rows)
        self.work(keys)
        self.producer.copy(rows)

    @rule(rows=st.integers(1, 3), cut=st.none() | st.integers(1, 2))
    def begin_chunk(self, rows: int, cut: int | None) -> None:
        self.producer.begin_chunk(rows, cut)

    @rule(which=st.integers(0, 2))
    def end_chunk(self, which: int) -> None:
        self.producer.end_chunk(which)

    @rule(
        chunks=st.lists(st.tuples(st.integers(1, 2), st.none() | KEYS), min_size=2, max_size=3),
        ends=st.lists(st.integers(0, 2), max_size=3),
        killed=st.booleans(),
    )
    def copy_with_several_workers(self, chunks: list[tuple[int, int | None]], ends: list[int], killed: bool) -> None:
        """Rows are written between the moments of the chunks, which end in any order, or never."""
        for rows, key in chunks:
            self.producer.begin_chunk(rows)
            if key is not None:
                self.write(0, key, None, keeps_big=False, end="visible")
        for which in ends:
            self.producer.end_chunk(which)
        if killed:
            self.producer.start()

    @rule(published=st.booleans(), chunk=st.booleans())
    def kill(self, published: bool, chunk: bool) -> None:
        """The producer dies, perhaps just after a commit to Kafka and before the slot is confirmed."""
        if chunk:
            self.work([1, 2, 3])
            self.producer.copy(3)
        if published:
            self.producer.commit(confirms=False)
        self.producer.start()

    @rule(first=st.none() | KEYS, last=st.none() | KEYS, at_once=st.booleans())
    def ask(self, first: int | None, last: int | None, at_once: bool) -> None:
        ends = [None if key is None else (str(key),) for key in (first, last)]
        self._alone(SnapshotRequest(table="public.t", first=ends[0], last=ends[1]))
        if at_once:
            self._read_on()

    @rule(session=SESSIONS, key=KEYS)
    def ask_while_what_is_decoded_is_not_visible(self, session: int, key: int) -> None:
        self.write_what_is_decoded_before_it_is_visible(session, key)
        self.ask(None, None, at_once=True)
        self.producer.copy(5)

    @rule()
    def ask_from_scratch(self) -> None:
        self._alone(SnapshotRequest(table="public.t", from_scratch=True))

    @rule()
    def heartbeat(self) -> None:
        self._alone(None)

    def _alone(self, request: SnapshotRequest | None) -> None:
        transaction = self.database.begin()
        if request is not None:
            self.asked.append(request)
            self.database.request(transaction, self.asked[-1])
        self.database.commit(transaction)
        self.database.end(transaction)

    @precondition(lambda self: not self.database.running)
    @rule(key=KEYS)
    def age(self, key: int) -> None:
        """32-bit ids wrap around; a server keeps its slot within half of them."""
        self._read_on()
        self.producer.copy(5)
        self.database.age()
        self.write(0, key, None, keeps_big=False, end="visible")
        self.producer.stream(50)

    def _read_on(self) -> None:
        while self.producer.behind:
            self.producer.stream(50)
        self.producer.commit()

    def teardown(self) -> None:
        """All transactions end, all is copied and streamed: the topic is the table, each request was taken once."""
        if not hasattr(self, "producer"):
            return
        for transaction in tuple(self.database.running):
            self.database.end(transaction)
        self._catch_up()
        self.producer.require_equal()
        assert self.producer.taken == self.asked

    def _catch_up(self) -> None:
        for _ in range(200):
            self.heartbeat()
            self._read_on()
            if self.producer.feed.copy.complete and not self.producer.feed.copy.incomplete.noted:
                return
            self.producer.copy(3)
        raise AssertionError("the snapshot never ends")


class UnorderedMachine(SnapshotMachine):
    """The table's keys can't be compared by the producer."""

    ordered = False


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose records omit a value are read as soon as the rules allow."""
    monkeypatch.setattr(incomplete_rows, "READ_SECONDS", 0)


@pytest.mark.parametrize("machine", [SnapshotMachine, UnorderedMachine])
def test_the_topic_is_the_table_and_no_key_goes_back_in_time(machine: type[SnapshotMachine]) -> None:
    explore(machine, 150 * TIMES, steps=40)


LEFT_OUT: list[tuple[ModuleType, str, object, type[SnapshotMachine]]] = [
    (table_snapshot, "TableChunks", PublishesWhatIsNotCopied, SnapshotMachine),
    (table_snapshot, "TableChunks", PublishesWhatAChunkShows, SnapshotMachine),
    (table_snapshot, "TableChunks", JudgesBehindTheChunk, SnapshotMachine),
    (table_snapshot, "TableChunks", ForgetsChunksAtOnce, SnapshotMachine),
    (table_snapshot, "TableChunks", MergesWithWhatIsNotPassed, SnapshotMachine),
    (model_producer, "Unseen", AwaitsNothing, SnapshotMachine),
    (model_producer, "Unseen", NotesNothing, UnorderedMachine),
    (table_publisher, "TableCopy", OverlooksTruncates, SnapshotMachine),
    (table_publisher, "TableCopy", OverlooksTruncates, UnorderedMachine),
    (table_snapshot, "RememberedChunk", RemembersNoKeys, UnorderedMachine),
    (table_snapshot, "RememberedChunk", TakesEveryKeyForRemembered, SnapshotMachine),
    (table_snapshot, "Reread", ForgetsKeysAtOnce, UnorderedMachine),
    (table_snapshot, "pack_keys", forgets_keys_when_killed, UnorderedMachine),
    (table_publisher, "TableCopy", RereadsAsIfForTheFirstTime, SnapshotMachine),
    (table_publisher, "TableCopy", AsksWithoutWaiting, SnapshotMachine),
    (model_producer, "Capture", ReadsWhatIsRecordedAgain, SnapshotMachine),
    (model_producer, "Capture", HoldsRequestsBack, SnapshotMachine),
    (table_snapshot, "IncompleteRows", PublishesWhatRowsShow, SnapshotMachine),
    (table_snapshot, "IncompleteRows", ForgetsRowsAtOnce, SnapshotMachine),
    (table_snapshot, "IncompleteRows", LosesKeysWhenKilled, SnapshotMachine),
    (table_snapshot, "IncompleteRows", LosesRowsWhenKilled, SnapshotMachine),
    (model_producer, "Capture", ReadsRowsWithoutWaiting, SnapshotMachine),
    (model_producer, "Capture", NotesWhatIsNotPublished, SnapshotMachine),
    (model_producer, "WAITS_FOR_CHUNKS", False, SnapshotMachine),
    (table_publisher, "TableCopy", GivesRangesTwice, SnapshotMachine),
    (table_publisher, "TableCopy", GivesRangesTwice, UnorderedMachine),
    (table_publisher, "TableCopy", JudgesByOneMoment, SnapshotMachine),
    (table_publisher, "TableCopy", TakesTheEndOfAGapForTheEndOfAll, SnapshotMachine),
    (table_publisher, "TableCopy", ReadsRowsNextToChunks, UnorderedMachine),
    (table_snapshot, "TableChunks", SkipsGaps, SnapshotMachine),
]
"""Location of each rule, its removal, and the machine that needs it."""

RARE = {
    MergesWithWhatIsNotPassed, LosesKeysWhenKilled, ReadsRowsNextToChunks, ReadsRowsWithoutWaiting, SkipsGaps,
}  # fmt: skip
"""Those whose removal shows only after thousands of histories."""


@pytest.mark.parametrize(
    ("module", "name", "without", "machine"),
    [pytest.param(*each, marks=[pytest.mark.long] if each[2] in RARE else []) for each in LEFT_OUT],
)
def test_every_rule_is_needed(
    module: ModuleType, name: str, without: object, machine: type[SnapshotMachine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, without)
    with pytest.raises(AssertionError):
        explore(machine, 3000, steps=40)
