"""The consumer's loop with a fake for each part, whose faults have names."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psycopg
import pytest

from consumers.contract.external import Pace
from consumers.ledger.fence import Wishes
from consumers.ledger.progress import Place
from consumers.planning.planner import Planner
from consumers.runtime.consumer import Consumer, Intervals
from consumers.runtime.parts import Parts
from consumers.runtime.totals import Totals
from schemas.errors import BrokerUnavailable, DatabaseUnavailable, HeadraceError, Interrupted
from schemas.positions import Offset
from tests.consumers.model.topic import MIGRATION, SCHEMA

HERE = Place("t", 0)
ONCE = float("inf")
NEVER_AGAIN = Intervals(check=ONCE, topics=0.0, report=ONCE, log=ONCE)


@dataclass
class World:
    """All parts of a consumer in one. `journal` says what it did, in order; it is stopped after so many `turns`."""

    turns: int = 3
    missing_topics: list[list[str]] = field(default_factory=list)
    """What is missing, one look after the other, then nothing."""
    complete: bool = False
    paused: list[bool] = field(default_factory=list)
    unhealthy: list[bool] = field(default_factory=list)
    """Answers one after the other, then False."""
    failed: bool = False
    """Whether the breaker has tripped: then records read are stale."""
    lost_sessions: list[bool] = field(default_factory=list)
    """Whether the target's session was lost, one look after the other, then False."""
    stale_after_wait: bool = False
    """Whether partitions come or go while the consumer waits."""
    errors: list[Exception] = field(default_factory=list)
    """What the steps of external work raise, one after the other."""
    kafka_silent: bool = False
    durable: bool = True
    finish_fails: bool = False
    counts_as_complete: bool = False
    pace: Pace = Pace.DONE
    at_end: bool = False
    journal: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    run_number = 1
    lost = False
    """Whether a session was lost, until the positions are read again."""
    positions: dict[Place, Offset] = field(default_factory=lambda: {HERE: Offset(7)})

    def did(self, what: str) -> None:
        self.journal.append(what)

    # The group.

    aside: frozenset[Place] = frozenset()
    generation = 0

    def missing(self, _topics: object) -> list[str]:
        return self.missing_topics.pop(0) if self.missing_topics else []

    def join(self, _topics: object) -> None:
        self.did("join")

    def poll(self, _limit: int, _seconds: float) -> list[object]:
        self.did("poll")
        self.turns -= 1
        if self.turns <= 0:
            self.stopping.set()
        return []

    def wait(self, _seconds: float, *, still: Callable[[], bool] = lambda: False) -> bool:
        self.did("wait")
        while still():
            self.did("wait")
        return not self.stale_after_wait

    def confirm(self) -> bool:
        if self.kafka_silent:
            raise BrokerUnavailable("Kafka does not answer")
        return True

    def commit(self) -> None:
        self.did("commit offsets")

    # The target.

    sessions = 1

    def ask(self, question: Any) -> Any:
        return question(self)

    def reconnect(self) -> None:
        self.did("reconnect")

    def finish(self, last_words: Callable[[Any], None]) -> bool:
        self.did("last write")
        if self.finish_fails:
            raise HeadraceError("the last write failed")
        last_words(self)
        return self.durable

    # The positions and the ledger.

    @property
    def current(self) -> bool:
        self.lost = self.lost or bool(self.lost_sessions and self.lost_sessions.pop(0))
        return not self.lost

    def begin(self, _connection: object) -> None:
        self.did("begin")

    def follow(self) -> None:
        self.did("follow")

    def read_again(self) -> None:
        self.lost = False
        self.did("read again")

    def wishes(self, _database: str) -> Callable[[Any], Wishes]:
        return lambda _connection: Wishes(paused=bool(self.paused and self.paused.pop(0)))

    # Breaker, throttle, pacing, external work, completion.

    records = 100
    interval = 0.0
    attempt = 1

    def hold(self, rest: Callable[[], None]) -> bool:
        if self.failed:
            rest()
        return not self.failed

    def throttled(self, _connection: object) -> bool:
        return bool(self.unhealthy and self.unhealthy.pop(0))

    def step(self, _run: int) -> None:
        if self.errors:
            self.did("fails")
            raise self.errors.pop(0)

    def count(self, wait: object) -> None:
        self.did("count patiently" if wait else "count")
        self.complete = self.counts_as_complete

    def rest(self) -> None:
        self.did("stop work")

    def nothing(self, *_: object) -> None:
        """Has no effect here."""

    def report(self, _totals: Totals, _positions: object) -> None:
        self.did("report")

    def run(
        self,
        *,
        until_caught_up: bool = False,
        until_complete: bool = False,
        intervals: Intervals = NEVER_AGAIN,
    ) -> Totals:
        part: Any = partial(_Part, self)
        parts = Parts(
            migration=MIGRATION,
            database="main",
            topics=("t",),
            planner=Planner(MIGRATION, lambda _: SCHEMA, "main"),
            ledger=part(leave="nothing"),
            group=part(close="leave group"),
            target=part(close="disconnect"),
            positions=part(run=self.run_number),
            dead_letter_writer=part(),
            pacing=part(follow="nothing"),
            breaker=part(look="nothing"),
            throttle=part(look=self.throttled, due=lambda: True, leave="nothing"),
            working=part(stop="stop work"),
            completion=part(
                look=lambda *_, wait, **__: self.count(wait),
                due=lambda **_: True,
                close="stop counting",
                complete_already="nothing",
            ),
            prepare=lambda _connection: self.did("prepare"),
        )
        ends = part(reached=lambda *_: self.at_end)
        return Consumer(
            parts,
            self.stopping,
            ends=(lambda: ends) if until_caught_up else None,
            until_complete=until_complete,
            report=self.report,
            intervals=intervals,
        ).run()


class _Part:
    """One part: what `named` gives it, a journal's line for a text, else what the world has."""

    def __init__(self, world: World, **named: Any) -> None:
        self._world = world
        self._named = named

    def __getattr__(self, name: str) -> Any:
        if name not in self._named:
            return getattr(self._world, name)
        found = self._named[name]
        if not isinstance(found, str):
            return found
        return self._world.nothing if found == "nothing" else lambda *_: self._world.did(found)


END = ["stop counting", "stop work", "last write", "commit offsets", "report", "leave group", "disconnect"]


def before_first_poll(world: World) -> list[str]:
    """Run, and return what the loop did before it first read, after it had joined its group."""
    world.run()
    journal = world.journal
    return journal[journal.index("join") + 1 : journal.index("poll")]


def test_consumer_prepares_the_database_then_joins_and_at_the_end_leaves() -> None:
    world = World(turns=1)
    world.run()
    assert world.journal == ["prepare", "begin", "join", "follow", "poll", "report", *END]


def test_consumer_of_a_complete_migration_does_not_join() -> None:
    world = World(complete=True)
    world.run()
    assert world.journal == ["prepare", "begin", *END]


def test_consumer_waits_for_topics_before_it_joins() -> None:
    world = World(missing_topics=[["t"], ["t"]], turns=1)
    world.run()
    assert world.journal[:3] == ["prepare", "begin", "join"]
    assert world.missing_topics == []


@pytest.mark.parametrize(("interval", "times"), [(0.0, 4), (ONCE, 1)])
def test_consumer_checks_and_reports_at_its_intervals(interval: float, times: int) -> None:
    world = World(turns=4)
    world.run(intervals=Intervals(check=interval, report=interval))
    assert world.journal.count("follow") == times
    assert world.journal.count("report") == times + 1


def test_consumer_stopped_while_topics_are_missing_ends_without_error() -> None:
    world = World(missing_topics=[["t"]])
    world.stopping.set()
    world.run()
    assert world.journal == ["prepare", "begin", *END]


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("why", ["paused", "unhealthy"])
def test_consumer_reads_nothing_while_it_is_suspended(why: str, stale: bool) -> None:
    world = World(stale_after_wait=stale)
    getattr(world, why).extend([True, True, True, False])
    expected = ["follow", "stop work", "wait", "report", "wait", "wait"]
    assert before_first_poll(world) == ([*expected, "read again"] if stale else expected)


def test_consumer_of_a_failed_migration_rereads_before_it_continues() -> None:
    assert before_first_poll(World(failed=True)) == ["follow", "stop work", "read again"]


def test_consumer_rereads_after_its_session_was_lost() -> None:
    assert before_first_poll(World(lost_sessions=[True])) == ["follow", "read again"]


@pytest.mark.parametrize(
    ("error", "stale", "expected"),
    [
        pytest.param(psycopg.errors.DeadlockDetected("a deadlock"), False, ["wait"], id="retried"),
        pytest.param(
            psycopg.errors.DeadlockDetected("a deadlock"), True, ["wait", "read again"], id="retried too late"
        ),
        pytest.param(psycopg.OperationalError("gone"), False, ["reconnect", "read again"], id="connection lost"),
    ],
)
def test_consumer_survives_a_failed_step_of_external_work(error: Exception, stale: bool, expected: list[str]) -> None:
    world = World(turns=2, errors=[error], stale_after_wait=stale)
    world.run()
    journal = world.journal
    failed = journal.index("fails")
    assert journal[failed + 1 : failed + 1 + len(expected)] == expected
    assert journal.count("poll") == 2
    assert journal[-len(END) :] == END


def test_consumer_ended_by_an_error_still_leaves_its_group() -> None:
    world = World(errors=[psycopg.errors.SyntaxError("no SQL")])
    with pytest.raises(HeadraceError, match="42601"):
        world.run()
    assert world.journal[-len(END) :] == END


def test_consumer_interrupted_by_something_else_than_a_stop_passes_it_on() -> None:
    world = World(errors=[Interrupted("cancelled")])
    with pytest.raises(HeadraceError):
        world.run()
    assert world.journal[-len(END) :] == END


def test_consumer_continues_without_counting_while_kafka_is_silent() -> None:
    world = World(kafka_silent=True)
    world.run()
    assert "count" not in world.journal
    assert world.journal.count("poll") == 3


@pytest.mark.parametrize("pace", [Pace.BUSY, Pace.WAITING])
def test_consumer_does_not_count_while_external_work_is_left(pace: Pace) -> None:
    world = World(pace=pace)
    world.run()
    assert "count" not in world.journal


def test_consumer_commits_no_offset_for_commits_that_may_be_lost() -> None:
    world = World(turns=1, durable=False)
    world.run()
    assert "commit offsets" not in world.journal


def test_consumer_whose_session_was_lost_at_the_end_commits_no_offset() -> None:
    """The first look is the loop's; the second is after the last write."""
    world = World(turns=1, lost_sessions=[False, True])
    world.run()
    assert "commit offsets" not in world.journal


def test_consumer_leaves_its_group_though_its_last_write_failed() -> None:
    world = World(turns=1, finish_fails=True)
    with pytest.raises(HeadraceError, match="the last write failed"):
        world.run()
    assert world.journal[-3:] == ["last write", "leave group", "disconnect"]


def test_consumer_until_caught_up_ends_after_a_second_pass_over_external_work() -> None:
    world = World(turns=9, at_end=True)
    world.run(until_caught_up=True)
    assert world.journal.count("poll") == 2
    first = world.journal.index("poll")
    assert "stop work" in world.journal[first : world.journal.index("poll", first + 1)]
    assert world.journal.count("count patiently") == 1


@pytest.mark.parametrize("lost", [False, True])
def test_consumer_until_caught_up_continues_if_its_last_commits_may_be_lost(lost: bool) -> None:
    """The third look is the one after it has caught up."""
    world = World(turns=9, at_end=True, lost_sessions=[False, False, lost])
    world.run(until_caught_up=True)
    assert world.journal.count("poll") == (4 if lost else 2)


def test_consumer_until_caught_up_reports_commits_that_may_be_lost() -> None:
    with pytest.raises(DatabaseUnavailable, match="may be lost"):
        World(turns=9, at_end=True, durable=False).run(until_caught_up=True)


def test_consumer_until_complete_ends_with_the_count_that_finds_nothing_left() -> None:
    world = World(turns=9, counts_as_complete=True)
    world.run(until_complete=True)
    assert world.journal.count("poll") == 1


def test_service_continues_after_its_migration_is_complete() -> None:
    world = World(turns=4, counts_as_complete=True)
    world.run()
    assert world.journal.count("poll") == 4
    assert world.journal.count("count") == 1
