"""Writes to a table that another database owns count once each; a table that comes back is complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from consumers.testing.waiting import until
from infra.state.positions import StrayState
from producers.publish.capture import Capture
from producers.publish.stray_writes import Strays
from producers.session.start_over import start_over
from producers.snapshot.chunk_rules import Unseen
from producers.stream import messages as pg
from schemas.errors import OwnershipMoved
from schemas.events import Op, Relation
from schemas.positions import Lsn, Position
from tests.consumers.container_repositories import write_settings
from tests.consumers.services import Service
from tests.producers.captures import OTHER, RELATION, TABLE, MemoryRegistry, done, feed
from tests.producers.folding import states
from tests.producers.session.test_handover import BOTH, GIVE, TAKE_BACK, TWO
from tests.producers.sources import Running, Source, copy_all, running

NewSource = Callable[..., Source]

AWAY = StrayState(source="main", table=TABLE.name, gitlab_schema=TABLE.gitlab_schema, since_ms=1)


def stray_capture(registry: MemoryRegistry, position: Position, confirmed: int) -> Capture:
    table = feed(registry, done())
    table.away = True
    return Capture([table], position, Lsn(confirmed), Unseen(), Strays("main", {TABLE.name: AWAY}, [table]))


def counted(capture: Capture) -> list[StrayState | None]:
    return [count for _, count in capture.strays.records()]


def transaction(lsn: int, *changes: pg.Message) -> list[pg.Message]:
    return [pg.Begin(Lsn(lsn), 1234, 1), *changes, pg.Commit(Lsn(lsn), Lsn(lsn + 8), 1234)]


CHANGES = (
    pg.Insert(RELATION, [b"1", b"v"], None),
    pg.Update(RELATION, None, [b"1", b"w"], None),
    pg.Insert(OTHER, [b"1"], None),
    pg.Insert(RELATION, [b"2", b"v"], None),
)


def test_recorded_writes_are_not_counted_again() -> None:
    """A position may be inside a transaction, which is sent again from its start."""
    for position, confirmed, inserts, updates in (
        (Position(Lsn(50), 0), 60, 2, 1),
        (Position(Lsn(100), 0), 60, 1, 1),
        (Position(Lsn(100), 2), 60, 1, 0),
    ):
        capture = stray_capture(MemoryRegistry(), position, confirmed)
        for message in transaction(100, *CHANGES):
            capture.handle(message)
        (count,) = counted(capture)
        assert count is not None
        assert (count.inserts, count.updates, count.removes, count.last_ms) == (inserts, updates, False, 1234)
        assert counted(capture) == []
    capture = stray_capture(MemoryRegistry(), Position(Lsn(100), 3), 108)
    for message in transaction(100, *CHANGES):
        capture.handle(message)
    assert counted(capture) == []


@pytest.mark.parametrize(
    "relation",
    [
        pytest.param(replace(RELATION, table="renamed"), id="renamed"),
        pytest.param(replace(RELATION, oid=16_500, table="t_1"), id="partition"),
    ],
)
def test_write_under_another_name_counts_for_the_table(relation: Relation) -> None:
    table = feed(MemoryRegistry(), done())
    table.away, table.leaves = True, frozenset({16_500})
    capture = Capture([table], Position(Lsn(50), 0), Lsn(60), Unseen(), Strays("main", {TABLE.name: AWAY}, [table]))
    for message in transaction(100, pg.Insert(relation, [b"1", b"v"], None)):
        capture.handle(message)
    assert [count.inserts for count in counted(capture) if count is not None] == [1]


@pytest.mark.parametrize(
    "message",
    [
        pg.Delete(RELATION, [b"1", None], None),
        pg.Truncate((RELATION,), False, False, None),
        pg.Update(RELATION, [b"1", None], [b"2", b"v"], None),
    ],
)
def test_removed_key_is_noted(message: pg.Message) -> None:
    capture = stray_capture(MemoryRegistry(), Position(Lsn(50), 0), 60)
    for each in transaction(100, message):
        capture.handle(each)
    (count,) = counted(capture)
    assert count is not None
    assert (count.writes, count.removes) == (1, True)


def test_unwatched_table_is_not_counted() -> None:
    strays = Strays("main", {}, ())
    strays.note("public.t", Op.CREATE, 1, removes=False)
    assert list(strays.records()) == []


# On real servers.


def strays(source: Source, table: str = "public.t") -> tuple[int, int, int, int] | None:
    count = source.recorded().strays.get(table)
    return None if count is None else (count.inserts, count.updates, count.deletes, count.truncates)


def without_t(source: Source) -> Source:
    """Return the source with settings that capture only public.u."""
    section = source.settings.database("main").model_copy(update={"tables": ("public.u",)})
    settings = source.settings.model_copy(update={"databases": {"main": section}})
    return Source(settings, source.connection)


def writes(source: Source) -> int:
    """Return how many writes to public.t Kafka shows as counted now."""
    count = source.state().strays.get("public.t")
    return 0 if count is None else count.writes


def metric(source: Source) -> float | None:
    return REGISTRY.get_sample_value("headrace_stray_writes", {"source": source.name, "table": "public.t"})


@pytest.mark.stack
def test_each_write_after_the_change_of_owner_counts_once_also_after_a_restart(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t", "public.u", **BOTH)
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("INSERT INTO t VALUES (3); UPDATE t SET id = 30 WHERE id = 3")
        source.passes(producer.check)
        assert strays(source) is None, "it is the owner's"
        source.connection.execute(GIVE)
        source.passes(producer.check)
        assert strays(source) == (0, 0, 0, 0), "watched, and nothing was written"
        source.connection.execute("INSERT INTO t VALUES (4), (5); DELETE FROM t WHERE id = 4; INSERT INTO u VALUES (2)")
        source.connection.execute("BEGIN; INSERT INTO t VALUES (6); ROLLBACK")
        source.passes(producer.check)
        assert strays(source) == (2, 0, 1, 0)
        assert metric(source) == 3
        assert strays(source, "public.u") is None
    source.connection.execute("UPDATE t SET id = 50 WHERE id = 5; TRUNCATE t")
    for _ in range(2):
        copy_all(source)
        assert strays(source) == (2, 1, 1, 1)
        assert metric(source) == 5
    copy_all(without_t(source))
    assert strays(source) is None, "the table is captured no more"


@pytest.mark.long
@pytest.mark.stack
def test_repeatedly_killed_producer_counts_each_write_once(new_source: NewSource, tmp_path: Path) -> None:
    source = new_source(TWO, "public.t", "public.u", **BOTH)
    config = write_settings(
        tmp_path / "headrace.toml",
        {
            "prefix": source.settings.prefix,
            "kafka": {"bootstrap_servers": source.settings.kafka.bootstrap_servers, "partitions": 2},
            "databases": {
                "main": {
                    "dsn": source.settings.database("main").dsn.get_secret_value(),
                    "tables": ["public.t", "public.u"],
                    **BOTH,
                }
            },
        },
    )
    service = Service(tmp_path / "produce.log", "produce", "main", "--config", str(config))
    try:
        source.caught_up()
        source.connection.execute(GIVE)
        before = 0
        for key in range(100, 400):
            source.connection.execute("INSERT INTO t VALUES (%s)", (key,))
            if key % 100 == 50:
                until(lambda: writes(source) > before, "the count to grow")  # noqa: B023 - called here
                before = writes(source)
                service.kill()
        source.passes()
        assert strays(source) == (300, 0, 0, 0)
    finally:
        service.stop()


@pytest.mark.stack
def test_table_never_owned_by_source_is_watched_from_its_start(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t", "public.u", **BOTH)
    copy_all(without_t(source))
    source.connection.execute(GIVE)
    source.connection.execute("INSERT INTO t VALUES (3)")
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("INSERT INTO t VALUES (4)")
        source.passes(producer.check)
    assert strays(source) == (1, 0, 0, 0)


@pytest.mark.long
@pytest.mark.stack
@pytest.mark.parametrize(
    ("statements", "emptied"),
    [
        ("INSERT INTO t VALUES (7); INSERT INTO t VALUES (8)", False),
        ("INSERT INTO t VALUES (7); DELETE FROM t WHERE id = 1", True),
        ("UPDATE t SET id = 9 WHERE id = 1", True),
        ("TRUNCATE t", True),
    ],
)
@pytest.mark.parametrize("stopped", [False, True])
def test_reverted_move_completes_topic_with_writes_made_meanwhile(
    new_source: NewSource, statements: str, emptied: bool, stopped: bool
) -> None:
    source = new_source(TWO, "public.t", "public.u", **BOTH)
    producer = Running(source)
    producer.caught_up()
    source.connection.execute(GIVE)
    source.passes(producer.check)
    if stopped:
        producer.stop.set()
        assert producer.ended() is None
    source.connection.execute(statements.encode())
    source.connection.execute(TAKE_BACK)
    if stopped:
        producer = Running(source)
    source.caught_up(producer.check)
    source.connection.execute("INSERT INTO t VALUES (20)")
    until_equal(source, producer)
    producer.stop.set()
    assert producer.ended() is None
    counts = states(source.require_equal("public.t"))
    assert bool(counts.get("t")) == emptied
    assert strays(source) is None
    assert source.recorded().handovers == {}


def until_equal(source: Source, producer: Running) -> None:
    """Wait until the re-snapshot, which starts after the change of owner, is done."""
    producer.caught_up()
    producer.caught_up()


@pytest.mark.stack
def test_source_started_over_counts_from_new_slot(new_source: NewSource) -> None:
    """Changes between the old slot and the new one are unknown."""
    source = new_source(TWO, "public.t", "public.u", **BOTH)
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute(GIVE)
        source.connection.execute("INSERT INTO t VALUES (3)")
        source.passes(producer.check)
    before = source.recorded().strays["public.t"]
    source.connection.execute("INSERT INTO t VALUES (4)")
    start_over(source.settings, "main")
    copy_all(source)
    after = source.recorded().strays["public.t"]
    assert (before.writes, after.writes) == (1, 0)
    assert after.since_ms > before.since_ms


@pytest.mark.stack
def test_reverted_move_completes_topic_of_producer_that_had_no_table_left(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t")
    producer = Running(source)
    producer.caught_up()
    source.connection.execute(GIVE)
    assert isinstance(producer.ended(), OwnershipMoved)
    source.connection.execute("INSERT INTO t VALUES (7)")
    source.connection.execute(TAKE_BACK)
    with running(source) as again:
        until_equal(source, again)
    source.require_equal("public.t")


@pytest.mark.long
@pytest.mark.stack
def test_reverted_move_completes_topic_whose_first_snapshot_was_not_done(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 3000)",
        "public.t",
        snapshot={"chunk_rows": 5},
    )
    producer = Running(source)
    until(lambda: any(each.chunks_done > 3 for each in source.state().snapshots.values()), "a few chunks")
    source.connection.execute(GIVE)
    assert isinstance(producer.ended(), OwnershipMoved)
    source.connection.execute("INSERT INTO t VALUES (0)")  # in a range that is copied
    source.connection.execute(TAKE_BACK)
    with running(source) as again:
        until_equal(source, again)
    source.require_equal("public.t")
