"""The new owner's slot after a switchover, and after the next failover: nothing is re-snapshotted."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.settings.model import DatabaseSettings
from infra.stack.postgresql.server import EmbeddedPostgres
from producers.source import slots
from producers.switchover.endpoints import Move
from producers.switchover.rules import next_step
from producers.switchover.steps import opened
from schemas.errors import OwnershipMoved
from tests.producers.folding import states
from tests.producers.pairs import Pair, kept, paired
from tests.producers.servers import own_server
from tests.producers.sources import Running, Source, running

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedPostgres]:
    with own_server() as running:
        yield running


@pytest.fixture
def pair(own: EmbeddedPostgres, bootstrap_servers: str, prefix: str) -> Iterator[Pair]:
    with paired(own, bootstrap_servers, prefix) as made:
        yield made


def at(source: Source, dsn: str) -> Source:
    section = {**source.settings.database(source.name).model_dump(), "dsn": dsn}
    databases = {**source.settings.databases, source.name: DatabaseSettings.model_validate(section)}
    settings = source.settings.model_copy(update={"databases": databases})
    return Source(settings, psycopg.connect(dsn, autocommit=True), source.name)


@pytest.mark.long
def test_taken_over_slot_survives_the_next_failover(own: EmbeddedPostgres, pair: Pair) -> None:
    old = Running(pair.first)
    until(lambda: kept(pair.first, pair.standby), "the slot is on the standby")
    old.caught_up()
    pair.switch()
    own.forget_standby(pair.name)
    assert isinstance(old.ended(), OwnershipMoved)
    assert pair.second.slot_state().failover
    pair.second.connection.execute("INSERT INTO t VALUES (3)")
    third = pair.standby.standby(f"{pair.name}_third")
    try:
        with running(pair.second) as producer:
            producer.caught_up()
            until(lambda: kept(pair.second, third), "the slot is on the next standby")
            pair.second.connection.execute("INSERT INTO t VALUES (4)")
            producer.caught_up()
        pair.standby.kill()
        third.promote()
        promoted = at(pair.second, third.dsn(pair.name))
        with promoted.connection:
            promoted.connection.execute("ALTER SYSTEM SET synchronized_standby_slots = ''")
            promoted.connection.execute("SELECT pg_reload_conf()")
            promoted.connection.execute("INSERT INTO t VALUES (5)")
            with running(promoted) as producer:
                producer.caught_up()
            assert states(promoted.require_equal("public.t")) == {"r": 2, "c": 3}
            assert promoted.slot_state().failover
    finally:
        third.abandon()


def test_takeover_killed_half_way_is_completed_by_its_producer(pair: Pair) -> None:
    source = pair.first
    with running(source) as producer:
        producer.caught_up()
    until(lambda: source.slot_state().active_pid is None, "the slot to be free")
    spare = f"{source.slot}_spare"
    source.connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (source.slot, spare))
    source.drop_slot()
    source.connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (spare, source.slot))
    slots.drop(source.connection, spare)
    assert not source.slot_state().failover, "as a copy is"
    with running(source) as producer:
        producer.caught_up()
        assert source.slot_state().failover


def test_taken_over_slot_begins_at_the_old_slot_s_position(pair: Pair) -> None:
    connection = pair.first.connection
    start = slots.create(connection, f"{pair.name}_a", failover=True)
    connection.execute("INSERT INTO t VALUES (7)")
    slots.take_over(connection, f"{pair.name}_a", f"{pair.name}_b")
    state = slots.read(connection, f"{pair.name}_b")
    assert state is not None
    assert (state.confirmed_flush, state.failover, state.ready) == (start, True, True)
    assert not slots.ensure_failover(connection, f"{pair.name}_b"), "idempotent"
    assert not slots.ensure_failover(connection, "nowhere")
    with pytest.raises(slots.SlotExists, match=f"slot {pair.name}_b already exists"):
        slots.take_over(connection, f"{pair.name}_a", f"{pair.name}_b")


@pytest.mark.long
def test_schema_that_moves_back_to_a_copy_of_its_new_owner_resumes(own: EmbeddedPostgres, pair: Pair) -> None:
    """On servers of three timelines; the original `first` is gone."""
    old = Running(pair.first)
    until(lambda: kept(pair.first, pair.standby), "the slot is on the standby")
    old.caught_up()
    pair.switch()
    own.forget_standby(pair.name)
    assert isinstance(old.ended(), OwnershipMoved)
    third = pair.standby.standby(f"{pair.name}_back")
    back = at(pair.first, third.dsn(pair.name))
    try:
        there = Running(pair.second)
        pair.second.connection.execute("INSERT INTO t VALUES (3)")
        there.caught_up()
        until(lambda: kept(pair.second, third), "the slot is on the next standby")
        with opened(back.settings, Move(("gitlab_main",), "second", "first")) as moving:
            assert next_step(moving.run()) is None
        pair.standby.forget_standby(f"{pair.name}_back")
        assert isinstance(there.ended(), OwnershipMoved)
        back.connection.execute("ALTER SYSTEM SET synchronized_standby_slots = ''")
        back.connection.execute("SELECT pg_reload_conf()")
        back.connection.execute("INSERT INTO t VALUES (4)")
        with running(back) as producer:
            producer.caught_up()
        assert states(back.require_equal("public.t")) == {"r": 2, "c": 2}
        stream = back.recorded().stream
        assert stream is not None
        assert stream.timeline == 3
    finally:
        back.connection.close()
        third.abandon()
