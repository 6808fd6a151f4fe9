"""The loop of a session with fakes only: its next action for each behaviour of the servers."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any, cast
from unittest.mock import Mock

import psycopg
import pytest

from infra.settings.database_login import Address
from infra.settings.model import SnapshotSettings
from producers.publish.capture import Capture
from producers.publish.table_publisher import TableFeed
from producers.session.commits import FROM_SCRATCH, Restart
from producers.session.copy_phase import Choice, ChunkTask, Copied
from producers.session.loop import USUAL, Parts, Session, Timing
from producers.snapshot.chunk_rules import Unseen
from producers.snapshot.table_snapshot import Bounds
from producers.source.schema_changes import TableStopped
from producers.source.table_errors import TableBusy
from producers.stream.messages import Origin
from schemas.errors import DatabaseUnavailable
from schemas.positions import Lsn, Position
from tests.producers.captures import MemoryRegistry, done, feed

BEHIND = Lsn(1_000)
"""The position of heartbeats, which the stream then has to reach."""
_TO_WORKERS = {"begin", "settled"}


@dataclass
class FakeWorkers:
    """So many workers, of which the first returns its chunk once nothing else can be begun."""

    world: World
    count: int
    reading: list[TableFeed] = field(default_factory=list)
    left: int = 0

    @property
    def idle(self) -> bool:
        return len(self.reading) < self.count

    @property
    def busy(self) -> bool:
        return bool(self.reading)

    def begin(self, feed: TableFeed, _rows: int, _left: float) -> None:
        self.world.begun += 1
        self.world.did("begin")
        self.reading.append(feed)

    def returned(self, _seconds: float) -> list[tuple[ChunkTask, Any]]:
        feed = self.reading.pop(0)
        task = ChunkTask(feed, Bounds(), 3, by_key=False, began=0.0)
        return [(task, lambda position: self.world.add_chunk(feed, position))]

    def settled(self) -> None:
        self.world.did("settled")

    def leave(self) -> None:
        self.left += 1


@dataclass
class World:
    """A session's parts. `journal` lists its actions in order; it is stopped after so many `steps`.

    `chunks` are the results of reading chunks, in order: a WAL position, or an error to raise.
    """

    chunks: list[Lsn | Exception] = field(default_factory=list)
    restarts: list[Restart | None] = field(default_factory=list)
    """The results of commits, in order, then None."""
    steps: int = 30
    small: int = 0
    """How many of the first chunks are each a whole table of three rows; the others belong to `feed`."""
    chunk_rows: int = 3
    whole: bool = True
    """Whether the table is copied already."""
    busy: bool = False
    """Whether each read returns something."""
    lag: int = 0
    """How many reads do not reach the heartbeat."""
    held: int = 0
    """How often no table may be read, because of a limit."""
    idle: bool = False
    """Whether nothing comes after the first read."""
    hurry: bool = False
    heartbeats_fail: bool = False
    workers: int = 1
    begun: int = 0
    """How many chunks were begun by workers."""
    journal: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.feed = feed(MemoryRegistry(), done() if self.whole else None)
        self.capture = Capture([self.feed], Position(Lsn(1), 0), Lsn(1), Unseen([]))
        self.several = FakeWorkers(self, self.workers)
        self.aside: list[str] = []
        self.sizes: list[int] = []
        self.throttles: list[str | None] = []
        self.logged: list[TableFeed] = []

    @property
    def acts(self) -> list[str]:
        """The journal without what is sent to workers."""
        return [what for what in self.journal if what not in _TO_WORKERS]

    def did(self, what: str) -> None:
        self.journal.append(what)
        self.steps -= what not in _TO_WORKERS
        if self.steps <= 0:
            self.stop.set()

    # The parts' functions.

    received = Lsn(0)

    def confirm(self, _lsn: Lsn) -> None:
        self.did("confirm")

    def read(self, _limit: int, _seconds: float) -> Iterable[Any]:
        self.did("read")
        self.capture.moved = not self.idle or self.journal.count("read") == 1
        self.lag -= 1
        self.capture.position = Position(BEHIND if self.lag < 0 else Lsn(BEHIND - 1), 0)
        return [Origin(Lsn(1), "elsewhere")] if self.busy else ()

    pending = property(lambda self: self.capture.moved)

    def send(self) -> None:
        """Nothing is collected."""

    def commit(
        self, states: Iterable[tuple[str, Any]] = (), *, confirm: Any, throttled_by: str | None
    ) -> Restart | None:
        self.throttles.append(throttled_by)
        self.did(f"commit {' '.join(name for name, _ in states)}".strip())
        self.capture.moved = False
        confirm(self.capture.confirmed)
        return self.restarts.pop(0) if self.restarts else None

    def choose(self) -> Choice:
        if self.held:
            self.held -= 1
            return Choice(None, waits=True, seconds=0.2 if self.idle else 0)
        if self.chunks and self.small:
            self.small -= 1
            return Choice(feed(MemoryRegistry(), done()))
        return Choice(self.feed if len(self.chunks) > len(self.several.reading) else None)

    def add_chunk(self, _feed: TableFeed, _position: Position) -> Copied | None:
        self.did("chunk")
        match self.chunks.pop(0):
            case Exception() as error:
                raise error
            case lsn:
                return Copied(3, 10, lsn)

    def beat(self) -> Lsn:
        self.did("heartbeat")
        if self.heartbeats_fail:
            raise psycopg.errors.LockNotAvailable
        return BEHIND

    def look(self, *_: object) -> None:
        """Does nothing."""

    noted = look

    # The limits of the copy.

    throttled_by: str | None = None

    def took(self, size: int) -> None:
        self.sizes.append(size)

    def leave(self) -> None:
        self.throttled_by = None

    def copied(self, feed: TableFeed, _chunk: Copied) -> None:
        self.logged.append(feed)

    def set_aside(self, _feed: TableFeed, reason: str) -> None:
        self.aside.append(reason)

    def hurries(self, _received: Lsn) -> bool:
        return self.hurry

    def run(self, timing: Timing = USUAL) -> Restart | None:
        this: Any = self
        parts = Parts(
            source="main", address=Address("host=nowhere"), settings=SnapshotSettings(chunk_rows=self.chunk_rows),
            sql=this, stream=this, incoming=this, feeds=[self.feed], capture=self.capture, commits=this,
            choose=self.choose, workers=cast(Any, self.several),
            turns=this, limits=this, beat=self.beat, watch=this, topic_watch=this, slot_monitor=this, copy_log=this,
        )  # fmt: skip
        return Session(parts, self.stop, timing).work()


def test_changes_are_committed_then_confirmed_even_when_stopped() -> None:
    world = World(steps=4)
    assert world.run() is None
    assert world.journal == ["read", "heartbeat", "read", "commit", "confirm", "commit", "confirm"]


@pytest.mark.parametrize(("seconds", "commits"), [(float("inf"), 1), (-1.0, 3)])
def test_busy_stream_is_committed_at_intervals_and_at_the_end(seconds: float, commits: int) -> None:
    world = World(busy=True, steps=9)
    world.run(Timing(commit_seconds=seconds))
    assert world.journal.count("commit") == commits
    assert world.journal[-2:] == ["commit", "confirm"]


@pytest.mark.parametrize(("gather", "seconds", "pauses"), [(0.25, 9.0, 2), (0.0, 9.0, 0), (0.25, -1.0, 0)])
def test_changes_that_follow_a_commit_gather_unless_it_had_to_end(gather: float, seconds: float, pauses: int) -> None:
    world, waited = World(steps=12), list[float]()
    world.stop = Mock(wraps=world.stop, wait=waited.append)
    world.run(Timing(gather_seconds=gather, commit_seconds=seconds))
    assert waited == [gather] * pauses


def test_chunks_are_committed_one_by_one() -> None:
    world = World(chunks=[Lsn(5), Lsn(6)], whole=False, steps=8)
    world.run()
    assert world.acts[:6] == ["chunk", "commit public.t", "confirm"] * 2


def test_small_tables_share_a_commit_of_at_most_a_tenth_of_a_chunk() -> None:
    world = World(chunks=[Lsn(5)] * 6, small=6, chunk_rows=100, whole=False, steps=12)
    world.run()
    first, second = f"commit {' '.join(['public.t'] * 4)}", f"commit {' '.join(['public.t'] * 2)}"
    assert world.acts[:10] == [*["chunk"] * 4, first, "confirm", *["chunk"] * 2, second, "confirm"]
    assert len(world.logged) == 6


def test_small_tables_are_committed_with_the_first_chunk_of_a_larger_one() -> None:
    world = World(chunks=[Lsn(5)] * 2, small=1, chunk_rows=1000, whole=False, steps=6)
    world.run()
    assert world.acts[:4] == ["chunk", "chunk", "commit public.t public.t", "confirm"]


@pytest.mark.parametrize("error", [TableStopped("its key is gone"), TableBusy("it is locked")])
def test_small_tables_are_committed_when_the_next_one_cannot_be_read(error: Exception) -> None:
    world = World(chunks=[Lsn(5), error], small=1, chunk_rows=1000, whole=False, steps=6)
    world.run()
    stopped = " public.t" if isinstance(error, TableStopped) else ""
    assert world.acts[:4] == ["chunk", "chunk", f"commit public.t{stopped}", "confirm"]
    assert len(world.logged) == 1


def test_small_tables_are_committed_before_a_stopped_session_ends() -> None:
    world = World(chunks=[Lsn(5)] * 3, small=3, chunk_rows=1000, whole=False, steps=2)
    world.run()
    assert world.acts[:3] == ["chunk", "chunk", "commit public.t public.t"]


def test_stream_catches_up_between_copy_phases() -> None:
    """The stream reaches a heartbeat that was written after the last chunk."""
    world = World(chunks=[Lsn(5)] * 9, whole=False, steps=40)
    world.run(Timing(copy_seconds=-1))
    assert "chunk" not in world.journal
    beats = [number for number, what in enumerate(world.journal) if what == "heartbeat"]
    assert len(beats) > 2
    for first, second in pairwise(beats):
        assert {"read", "commit"} <= set(world.journal[first:second])


def test_copy_phase_ends_when_the_slot_retains_too_much_wal() -> None:
    world = World(chunks=[Lsn(2 << 40)] * 9, whole=False, steps=6)
    world.run()
    assert world.acts[:4] == ["chunk", "commit public.t", "confirm", "heartbeat"]


def test_copy_phase_continues_up_to_a_quarter_of_the_wal_that_the_slot_may_retain() -> None:
    world = World(chunks=[Lsn(63 << 20), Lsn(65 << 20), Lsn(5)], whole=False, steps=8)
    world.run()
    assert world.acts[:7] == [*["chunk", "commit public.t", "confirm"] * 2, "heartbeat"]


def test_stream_phase_lasts_until_the_heartbeat_is_reached() -> None:
    world = World(chunks=[Lsn(65 << 20), Lsn(5)], whole=False, steps=20, lag=3)
    world.run()
    first, second = (number for number, what in enumerate(world.journal) if what == "chunk")
    assert world.journal[first:second].count("read") == 4


def test_unreadable_table_is_stopped_and_others_continue() -> None:
    world = World(chunks=[TableStopped("its key is gone")], whole=False, steps=8)
    assert world.run() is None
    assert world.acts[:3] == ["chunk", "commit public.t", "confirm"]
    assert world.feed.state.stopped == "its key is gone"
    assert "read" in world.acts


@pytest.mark.parametrize("whole", [True, False])
def test_restart_ends_the_session_after_commit_and_confirmation(whole: bool) -> None:
    restart = Restart(FROM_SCRATCH, "public.t")
    world = World(chunks=[] if whole else [Lsn(5)], whole=whole, restarts=[restart])
    assert world.run() == restart
    assert world.acts[-2].startswith("commit")
    assert world.acts[-1] == "confirm"
    assert sum(what.startswith("commit") for what in world.acts) == 1


def test_slot_at_risk_gets_a_heartbeat_at_once() -> None:
    idle, hurried = World(steps=20), World(steps=20, hurry=True)
    idle.run()
    hurried.run()
    assert idle.journal.count("heartbeat") == 1
    assert hurried.journal.count("heartbeat") > 3


def test_failed_heartbeat_does_not_stop_the_session() -> None:
    world = World(chunks=[Lsn(5)], whole=False, heartbeats_fail=True, steps=12)
    assert world.run() is None
    assert world.journal.count("read") > 1


def test_throttled_copy_gives_its_turn_to_the_stream_and_is_recorded() -> None:
    world = World(chunks=[Lsn(5)], whole=False, steps=20)
    world.throttled_by = "replica_lag: a standby is behind"
    world.held = 2
    world.run()
    turns = world.journal[: world.journal.index("chunk")]
    assert turns.count("heartbeat") == 2
    assert turns.count("commit") >= 2
    assert world.throttles[0] == "replica_lag: a standby is behind"
    assert world.sizes == [10]


def test_stream_returns_to_a_limited_copy_though_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(1_000)
    monkeypatch.setattr("time.monotonic", lambda: next(clock) / 100)
    world = World(chunks=[Lsn(5)], whole=False, steps=60, held=1, idle=True)
    world.run()
    before = world.journal[: world.journal.index("chunk")]
    assert before.count("commit") == 1
    assert before.count("read") > 3
    assert before.count("heartbeat") == 1


def test_workers_get_the_next_chunk_before_theirs_is_committed_and_read_it_after() -> None:
    world = World(chunks=[Lsn(5)] * 5, whole=False, workers=2, steps=19)
    world.run()
    again = ["chunk", "begin", "commit public.t", "confirm", "settled"]
    assert world.journal[:17] == ["begin", "begin", *again, *again, *again]
    assert world.several.left == 0


def test_stream_is_not_read_while_a_worker_reads() -> None:
    world = World(chunks=[Lsn(65 << 20), *[Lsn(5)] * 5], whole=False, workers=3, steps=40)
    world.run()
    for number, what in enumerate(world.journal):
        if what in ("read", "heartbeat"):
            before = world.journal[:number]
            assert before.count("begin") == before.count("chunk")
    first = world.journal.index("heartbeat")
    assert world.journal[:first].count("begin") == 3, "a chunk was begun after one that showed too much WAL"


@pytest.mark.parametrize("error", [TableBusy("it is locked"), psycopg.errors.LockNotAvailable("locked")])
def test_chunk_that_a_worker_could_not_read_is_read_later(error: Exception) -> None:
    world = World(chunks=[error, Lsn(5)], whole=False, workers=2, steps=8)
    world.run()
    assert len(world.aside) == 1
    assert world.journal[:6] == ["begin", "begin", "chunk", "settled", "chunk", "commit public.t"]


def test_chunks_of_a_table_that_was_stopped_meanwhile_are_dropped() -> None:
    world = World(chunks=[TableStopped("its key is gone"), Lsn(5), Lsn(5)], whole=False, workers=3, steps=10)
    world.run()
    assert world.feed.state.stopped == "its key is gone"
    assert world.journal.count("chunk") == 1
    assert world.begun == 3


def test_error_of_a_worker_ends_the_session() -> None:
    world = World(chunks=[psycopg.OperationalError("lost")], whole=False, workers=2)
    with pytest.raises(DatabaseUnavailable):
        world.run()


def test_workers_leave_once_everything_is_copied() -> None:
    world = World(workers=2, steps=6)
    world.run()
    assert world.several.left > 0
