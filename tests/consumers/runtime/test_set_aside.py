"""Events that arrive before their rows are visible wait in order, and nothing else waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from prometheus_client import REGISTRY

from consumers.ledger.progress import Place
from consumers.migrations.skip_resets import SkipResets
from consumers.operations.status import gather
from consumers.planning.planner import Waiting
from consumers.runtime.assembly import consumer_of
from consumers.runtime.consumer import Consumer
from consumers.runtime.set_aside import WaitingPartitions
from consumers.runtime.totals import Totals
from consumers.testing.waiting import until
from infra.settings.model import Settings
from schemas.positions import Offset
from tests.conftest import Database
from tests.consumers.container_repositories import TOO_MANY_TAGS, Feed, fill, states, written

A, B = Place("a", 0), Place("b", 1)


class Answers:
    """Answers which transactions are visible, as a connection would."""

    def __init__(self) -> None:
        self.visible: set[str] = set()

    def execute(self, _query: object, parameters: tuple[list[str], bool]) -> list[tuple[str]]:
        return [(xid,) for xid in parameters[0] if xid in self.visible]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_visibility_checks_are_frequent_first_and_rarer_later() -> None:
    clock = Clock()
    unseen = WaitingPartitions("m", clock)
    assert unseen.seconds(5) == 5
    assert not unseen.due()
    unseen.add({A: Waiting(Offset(3), 77)})
    pauses = []
    for _ in range(8):
        pauses.append(unseen.seconds(5))
        clock.now += pauses[-1]
        assert unseen.due()
        assert unseen.look(Answers()) == []  # type: ignore[arg-type]
    assert pauses[0] < 0.02
    assert pauses == sorted(pauses)
    assert pauses[-1] == pauses[-2] < 1


def test_partition_waits_until_its_own_transaction_is_visible() -> None:
    unseen, answers = WaitingPartitions("m", Clock()), Answers()
    unseen.add({A: Waiting(Offset(3), 77)})
    unseen.add({B: Waiting(Offset(9), 78)})
    answers.visible = {"78"}
    assert unseen.look(answers) == [B]  # type: ignore[arg-type]
    assert set(unseen.places) == {A}
    answers.visible = {"77", "78"}
    assert unseen.look(answers) == [A]  # type: ignore[arg-type]
    assert not unseen.places


def test_partition_assigned_to_another_consumer_is_forgotten() -> None:
    unseen = WaitingPartitions("m", Clock())
    unseen.add({A: Waiting(Offset(3), 77), B: Waiting(Offset(9), 78)})
    unseen.keep_only([B])
    assert set(unseen.places) == {B}


@pytest.mark.stack
def test_server_reports_visible_transactions_and_those_lost_in_failover(
    connection: psycopg.Connection[Any], open_transaction: tuple[Any, int]
) -> None:
    other, xid = open_transaction
    unseen = WaitingPartitions("m", Clock())
    lost = xid + 1_000_000
    unseen.add({A: Waiting(Offset(3), xid), B: Waiting(Offset(9), lost)})
    assert unseen.look(connection) == [B]
    other.execute("COMMIT")
    assert unseen.look(connection) == [A]


class Member:
    """A consumer in its own thread."""

    def __init__(self, settings: Settings) -> None:
        self.stopping = threading.Event()
        work = SkipResets.configure(settings.migration("skip_resets"))
        self.runtime = consumer_of(settings, work, "main", stopping=self.stopping, until_caught_up=True)
        self._pool = ThreadPoolExecutor(1)
        self.running: Future[Totals] = Future()

    def start(self) -> None:
        self.running = self._pool.submit(self.runtime.run)

    def waiting(self) -> float:
        """Return the number of waiting partitions, from the metric."""
        return REGISTRY.get_sample_value("headrace_waiting_partitions", {"migration": "skip_resets"}) or 0.0

    def end(self) -> None:
        self.stopping.set()
        self._pool.shutdown()


@contextmanager
def member(settings: Settings, *, at_once: bool = True) -> Iterator[Member]:
    started = Member(settings)
    if at_once:
        started.start()
    try:
        yield started
    finally:
        started.end()


@pytest.fixture
def open_transaction(database: Database, connection: psycopg.Connection[Any]) -> tuple[Any, int]:
    """An uncommitted transaction with writes: other sessions cannot distinguish it from one whose commit waits."""
    del connection
    other = database.connect()
    other.execute("BEGIN")
    (xid,) = other.execute("SELECT pg_current_xact_id()::text::bigint").fetchone() or (0,)
    return other, xid % 2**32


@pytest.mark.stack
def test_other_partitions_continue_and_order_within_partition_is_kept(
    settings: Settings,
    feed: Feed,
    connection: psycopg.Connection[Any],
    open_transaction: tuple[Any, int],
    ledger: Callable[[], Any],
) -> None:
    other, xid = open_transaction
    rows = dict.fromkeys(range(200), TOO_MANY_TAGS)
    fill(connection, rows)
    fill(other, {1_000: TOO_MANY_TAGS})
    feed.snapshot(dict.fromkeys(range(100), TOO_MANY_TAGS))
    feed.xid = xid
    feed.send([feed.upsert(1_000, *TOO_MANY_TAGS)])
    feed.xid = 7
    feed.snapshot(dict.fromkeys(range(100, 200), TOO_MANY_TAGS))
    ends = _ends(settings)
    with member(settings) as consumer:
        until(lambda: consumer.running.done() or _behind(settings, ends) == 1, "three partitions are at their ends")
        assert not consumer.running.done()
        (waiting,) = [each for each in _partitions(settings) if each["offset"] < each["end_offset"]]
        status = {each["name"]: each for each in gather(settings)["migrations"]}["skip_resets"]
        assert status["state"] == "running"
        done_before = set(written(connection))
        other.execute("COMMIT")
        totals = consumer.running.result()
    assert waiting["offset"] > 0, "earlier events of its partition are applied"
    assert 1_000 not in done_before
    assert 100 < len(done_before) < 200, "later events of its partition wait"
    assert sorted(written(connection)) == [*range(200), 1_000]
    assert totals.applied == 201
    assert totals.skipped == 0
    assert states(connection)[1_000] == ("default", None)


def _partitions(settings: Settings) -> list[dict[str, Any]]:
    status = {each["name"]: each for each in gather(settings)["migrations"]}["skip_resets"]
    found: list[dict[str, Any]] = status["partitions"]
    return found


def _ends(settings: Settings) -> dict[int, int]:
    return {each["partition"]: each["end_offset"] for each in _partitions(settings)}


def _behind(settings: Settings, ends: dict[int, int]) -> int:
    return sum(each["offset"] < ends[each["partition"]] for each in _partitions(settings))


@pytest.mark.stack
def test_transaction_in_every_partition_waits_and_is_applied_once(
    settings: Settings, feed: Feed, connection: psycopg.Connection[Any], open_transaction: tuple[Any, int]
) -> None:
    other, xid = open_transaction
    rows = dict.fromkeys(range(60), TOO_MANY_TAGS)
    fill(other, rows)
    feed.xid = xid
    feed.snapshot(rows)
    with member(settings) as consumer:
        until(lambda: consumer.running.done() or consumer.waiting() == 4, "all four wait")
        assert not written(connection)
        other.execute("COMMIT")
        assert consumer.running.result().applied == 60
    assert sorted(written(connection)) == list(range(60))


@pytest.mark.stack
def test_transaction_that_is_rolled_back_delays_nothing(
    settings: Settings, feed: Feed, connection: psycopg.Connection[Any], open_transaction: tuple[Any, int]
) -> None:
    """None of its events is published, but an old event may have the low half of its id."""
    other, xid = open_transaction
    fill(connection, {1: TOO_MANY_TAGS})
    feed.xid = xid
    feed.snapshot({1: TOO_MANY_TAGS})
    with member(settings) as consumer:
        until(lambda: consumer.running.done() or consumer.waiting(), "it waits")
        other.execute("ROLLBACK")
        assert consumer.running.result().applied == 1


@pytest.mark.stack
def test_event_of_transaction_lost_in_failover_is_applied_to_current_row(
    settings: Settings, feed: Feed, connection: psycopg.Connection[Any], catch_up: Callable[..., Totals]
) -> None:
    """The server never assigned that id, so the transaction will never be visible, and the guard decides."""
    fill(connection, {1: TOO_MANY_TAGS})
    feed.xid = 900_000_000
    feed.snapshot({1: TOO_MANY_TAGS, 2: TOO_MANY_TAGS})
    totals = catch_up()
    assert (totals.applied, totals.skipped) == (1, 1)


@pytest.mark.stack
def test_transaction_ids_of_another_database_are_ignored(
    settings: Settings, connection: psycopg.Connection[Any], open_transaction: tuple[Any, int]
) -> None:
    """After a switchover the topic has the old owner's events, all of which were replayed before the promotion."""
    _, xid = open_transaction
    fill(connection, {1: TOO_MANY_TAGS})
    old_owner = Feed(settings, database="old")
    old_owner.xid = xid
    old_owner.snapshot({1: TOO_MANY_TAGS})
    with member(settings) as consumer:
        assert consumer.running.result().applied == 1


@pytest.mark.long
@pytest.mark.stack
def test_waiting_partition_reassigned_during_pause_is_read_from_the_ledger(
    settings: Settings, feed: Feed, connection: psycopg.Connection[Any], open_transaction: tuple[Any, int]
) -> None:
    """A rebalance during a pause revokes and reassigns it before the consumer checks anything."""
    other, xid = open_transaction
    early, late = range(60), range(100, 160)
    fill(other, dict.fromkeys(early, TOO_MANY_TAGS))
    fill(connection, dict.fromkeys(late, TOO_MANY_TAGS))
    feed.xid = xid
    feed.snapshot(dict.fromkeys(early, TOO_MANY_TAGS))
    feed.xid = 7
    with member(settings) as consumer:
        runtime = consumer.runtime
        until(lambda: consumer.running.done() or consumer.waiting() == 4, "all four wait")
        connection.execute("UPDATE headrace.migrations SET paused = true")
        until(lambda: runtime._group._held, "it is paused")
        with member(settings) as second:
            until(lambda: len(second.runtime._group.positions) == 2, "a second consumer has two of them")
        until(lambda: len(runtime._group.positions) == 4, "they are back")
        connection.execute("UPDATE headrace.migrations SET paused = false")
        turns = _turns(runtime)
        until(lambda: len(turns) > 20 or consumer.running.done(), "some iterations")
        other.execute("COMMIT")
        feed.snapshot(dict.fromkeys(late, TOO_MANY_TAGS))
        consumer.running.result()
    assert set(early) <= set(written(connection))


def _turns(runtime: Consumer) -> list[None]:
    """Return a list that grows with each iteration of the consumer's loop."""
    turns: list[None] = []
    bring_back = runtime._applying.bring_back

    def counted() -> None:
        turns.append(None)
        bring_back()

    runtime._applying.bring_back = counted  # type: ignore[method-assign]
    return turns


@pytest.mark.stack
@pytest.mark.parametrize("statement_timeout", ["0", "800ms"])
def test_long_row_lock_delays_only_its_own_partition(
    statement_timeout: str, settings: Settings, feed: Feed, connection: psycopg.Connection[Any], database: Database
) -> None:
    """The lock may be held by a commit that waits for a synchronous standby and was decoded long before."""
    connection.execute(f"ALTER DATABASE {database.name} SET statement_timeout = '{statement_timeout}'")
    fill(connection, dict.fromkeys(range(200), TOO_MANY_TAGS))
    feed.snapshot(dict.fromkeys(range(200), TOO_MANY_TAGS))
    locking = database.connect()
    locking.execute("BEGIN")
    locking.execute("UPDATE container_repositories SET project_id = 0 WHERE id = 100")
    with member(settings) as consumer:
        until(lambda: consumer.running.done() or consumer.waiting() == 1, "one partition waits")
        ends = _ends(settings)
        until(lambda: consumer.running.done() or _behind(settings, ends) == 1, "three partitions are at their ends")
        assert not consumer.running.done()
        locking.execute("COMMIT")
        consumer.running.result()
    effects = connection.execute("SELECT id FROM writes WHERE application LIKE 'headrace consume%'").fetchall()
    assert sorted(effects) == [(key,) for key in range(200)]


def test_lock_retries_back_off_until_partition_advances() -> None:
    clock = Clock()
    waiting = WaitingPartitions("m", clock)
    pauses = []
    for _ in range(6):
        waiting.add({A: Waiting(Offset(3), None)})
        began = clock.now
        while not waiting.look(Answers()):  # type: ignore[arg-type]
            clock.now += 0.01
        pauses.append(clock.now - began)
        assert waiting.locked([A])
    assert pauses[-1] > 4 * pauses[0]
    waiting.moved([A])
    assert not waiting.locked([A])


@pytest.mark.long
@pytest.mark.stack
def test_rebalance_during_database_wait_invalidates_records(
    settings: Settings, feed: Feed, connection: psycopg.Connection[Any], open_transaction: tuple[Any, int]
) -> None:
    """A partition set aside and reassigned is read from the ledger, not from where its records ended."""
    other, xid = open_transaction
    early, late = range(40), range(100, 300)
    fill(other, dict.fromkeys(early, TOO_MANY_TAGS))
    fill(connection, dict.fromkeys(late, TOO_MANY_TAGS))
    feed.xid = xid
    feed.snapshot(dict.fromkeys(early, TOO_MANY_TAGS))
    feed.xid = 7
    feed.snapshot(dict.fromkeys(late, TOO_MANY_TAGS))
    with member(settings, at_once=False) as consumer:
        runtime, rebalanced = consumer.runtime, threading.Event()
        healthy = runtime._interruptions.healthy
        # As a consumer whose database does not answer: in its group, without checking for rebalances.
        poll = partial(runtime._group.wait, 0.05)

        def asked_for_long() -> bool:
            if runtime._group.aside and not rebalanced.is_set():
                rebalanced.set()
                with member(settings) as second:
                    until(lambda: len(second.runtime._group.positions) == 2, "the second has its half", meanwhile=poll)
                until(lambda: len(runtime._group.positions) == 4, "all are the first's again", meanwhile=poll)
            return healthy()

        runtime._interruptions.healthy = asked_for_long  # type: ignore[method-assign]
        consumer.start()
        until(lambda: consumer.running.done() or (rebalanced.is_set() and consumer.waiting() == 4), "all wait again")
        other.execute("COMMIT")
        consumer.running.result()
    assert sorted(written(connection)) == [*early, *late]
