"""Handover between producers: nothing is missed, whichever is killed, restarted, or started too early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from consumers.testing.waiting import until
from infra.postgres.control import WrongDatabase
from infra.stack.postgresql.databases import DatabaseServer
from infra.state.positions import Positions, StreamState
from producers.session.check import hindrances
from producers.session.loop import Session
from producers.session.resume import ServerWal, server_wal
from producers.session.start_over import start_over
from producers.source import slots
from producers.source.gaps import SilentGap
from schemas.errors import OwnershipMoved
from schemas.positions import Lsn
from schemas.topics import table_topic
from tests.producers.folding import folded_rows, read_topic, states
from tests.producers.sources import Running, Source, copy_all, running
from tests.producers.switchover.moves import Moves, give, make_slot, open_as, write
from tests.server_versions import MAJORS, server_or_skip

pytestmark = pytest.mark.stack


on_the_oldest_too = pytest.mark.parametrize(
    "server", [pytest.param("oldest", marks=pytest.mark.long), "embedded"], indirect=True
)
"""For what depends on the server: how a slot is created, and the timelines of a copy that comes back."""


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[DatabaseServer]:
    """The stack's PostgreSQL, with `on_the_oldest_too` also the oldest that is supported."""
    if getattr(request, "param", "embedded") == "embedded":
        yield request.getfixturevalue("stack").postgres
        return
    with server_or_skip(MAJORS[0]) as oldest:
        yield oldest


@pytest.fixture
def moves(bootstrap_servers: str, prefix: str, server: DatabaseServer) -> Iterator[Moves]:
    made = Moves(bootstrap_servers, prefix, server)
    yield made
    made.close()


def published_by_first(moves: Moves) -> None:
    """Run the old owner's producer until it has published everything and ends."""
    assert isinstance(Running(moves.first).ended(), OwnershipMoved)


def of_check(source: Source) -> list[str]:
    positions = Positions(source.settings.prefix, source.settings.kafka)
    return [each.problem for each in hindrances(source.connection, source.settings, source.name, positions)]


def refused(source: Source, kind: type[BaseException], words: str) -> None:
    with pytest.raises(kind, match=words):
        raise Running(source).ended() or AssertionError("it started")


@on_the_oldest_too
def test_slot_created_before_the_opening_misses_nothing(moves: Moves) -> None:
    copy_all(moves.first)
    write(moves.first, 3)
    moves.move(moves.first, moves.second)
    write(moves.second, 4)
    published_by_first(moves)
    assert of_check(moves.second) == []
    copy_all(moves.second)
    assert states(moves.second.require_equal("public.t")) == {"r": 2, "c": 2}


def test_slot_created_after_the_opening_is_refused(moves: Moves) -> None:
    copy_all(moves.first)
    give(moves.first, "second")
    moves.copy(moves.first, moves.second)
    open_as(moves.second)
    write(moves.second, 3)
    make_slot(moves.second)
    published_by_first(moves)
    words = "after gitlab_main was opened here at .*: changes in between are in no topic"
    refused(moves.second, SilentGap, words)
    (found,) = of_check(moves.second)
    assert "changes in between are in no topic" in found
    start_over(moves.settings, "second")
    copy_all(moves.second)
    moves.second.require_equal("public.t")


@on_the_oldest_too
def test_slot_under_creation_at_the_opening_is_refused(moves: Moves, server: DatabaseServer) -> None:
    copy_all(moves.first)
    give(moves.first, "second")
    moves.copy(moves.first, moves.second)
    looking, name = moves.second.connection, moves.second.slot
    dsn = moves.second.settings.database("second").dsn.get_secret_value()
    with closing(psycopg.connect(dsn)) as slow, closing(psycopg.connect(dsn, autocommit=True)) as maker:
        slow.execute("INSERT INTO shared VALUES (2)")
        maker.pgconn.send_query(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')".encode())
        until(lambda: slots.read(looking, name) is not None, "the slot to be begun")
        open_as(moves.second)
        write(moves.second, 3)
        published_by_first(moves)
        refused(moves.second, SilentGap, f"slot {name} is still being created by process")
        until(lambda: "a transaction of" in "".join(of_check(moves.second)), "check to name what it waits for")
        slow.commit()
        until(lambda: moves.second.slot_state().ready, "the slot to be ready")
    refused(moves.second, SilentGap, "changes in between are in no topic")


def test_unrecorded_opening_is_refused(moves: Moves) -> None:
    copy_all(moves.first)
    give(moves.first, "second")
    moves.copy(moves.first, moves.second)
    make_slot(moves.second)
    moves.second.connection.execute("UPDATE headrace.database SET name = 'second'")
    published_by_first(moves)
    refused(moves.second, SilentGap, r"headrace\.database does not record when it was opened")
    open_as(moves.second)
    copy_all(moves.second)
    moves.second.require_equal("public.t")


def test_new_producer_ends_before_the_opening_and_waits_for_the_old_one_after_it(moves: Moves) -> None:
    copy_all(moves.first)
    give(moves.first, "second")
    moves.copy(moves.first, moves.second)
    make_slot(moves.second)
    refused(moves.second, WrongDatabase, "the settings call this database second, but it is recorded as first")
    open_as(moves.second)
    write(moves.second, 3)
    with running(moves.second) as new:
        published_by_first(moves)
        new.caught_up()
        write(moves.second, 4)
        new.caught_up()
    assert states(moves.second.require_equal("public.t")) == {"r": 2, "c": 2}


def test_both_producers_run_from_the_opening_on(moves: Moves) -> None:
    copy_all(moves.first)
    for key in range(3, 300):
        write(moves.first, key)
    moves.move(moves.first, moves.second)
    with running(moves.second) as new:
        old = Running(moves.first)
        for key in range(300, 320):
            write(moves.second, key)
        new.caught_up()
        assert isinstance(old.ended(), OwnershipMoved)
    assert states(moves.second.require_equal("public.t")) == {"r": 2, "c": 317}


class Dies(BaseException):
    """A process that is killed."""


class DiesBeforeHandover(Session):
    """Killed once the change of owner was read, before Kafka has it."""

    def _commit(self, *arguments: Any) -> None:
        if self._capture.handovers:
            raise Dies
        super()._commit(*arguments)


class DiesAfterHandover(Session):
    """Killed once Kafka has the change of owner, before the slot is confirmed and it is logged."""

    def _commit(self, *arguments: Any) -> None:
        handed_over = bool(self._capture.handovers)
        if handed_over:
            self._stream.close()
        super()._commit(*arguments)


@pytest.mark.parametrize("session", [DiesBeforeHandover, DiesAfterHandover])
def test_old_producer_killed_at_the_handover_is_restarted(moves: Moves, session: type[Session]) -> None:
    copy_all(moves.first)
    write(moves.first, 3)
    moves.move(moves.first, moves.second)
    write(moves.second, 4)
    assert Running(moves.first, session).ended() is not None
    published_by_first(moves)
    copy_all(moves.second)
    published_by_first(moves)  # and again once the new one is at work
    assert states(moves.second.require_equal("public.t")) == {"r": 2, "c": 2}


def test_schema_taken_back_meanwhile_is_handed_over_by_its_last_change_of_owner(moves: Moves) -> None:
    copy_all(moves.first)
    give(moves.first, "second")
    published_by_first(moves)
    give(moves.first, "first")
    write(moves.first, 3)
    copy_all(moves.first)
    assert moves.first.recorded().handovers == {}
    moves.move(moves.first, moves.second)
    write(moves.second, 4)
    published_by_first(moves)
    copy_all(moves.second)
    assert states(moves.second.require_equal("public.t")) == {"r": 2, "c": 2}


def test_old_producer_that_started_over_too_early_leaves_no_silent_gap(moves: Moves) -> None:
    copy_all(moves.first)
    write(moves.first, 3)
    moves.move(moves.first, moves.second)
    start_over(moves.settings, "first")
    words = (
        "no snapshot of table public.t is recorded; re-snapshot all tables with `headrace produce second --start-over`"
    )
    refused(moves.second, SilentGap, words)
    published_by_first(moves)
    start_over(moves.settings, "second")
    copy_all(moves.second)
    moves.second.require_equal("public.t")


def test_old_producer_that_started_over_after_the_handover_changes_nothing(moves: Moves) -> None:
    copy_all(moves.first)
    moves.move(moves.first, moves.second)
    write(moves.second, 3)
    published_by_first(moves)
    start_over(moves.settings, "first")
    copy_all(moves.second)
    published_by_first(moves)
    assert states(moves.second.require_equal("public.t")) == {"r": 2, "c": 1}


def test_second_move_waits_only_for_the_last_owner(bootstrap_servers: str, prefix: str, server: DatabaseServer) -> None:
    with closing(Moves(bootstrap_servers, prefix, server, names=("first", "second", "third"))) as moves:
        third = moves.sources["third"]
        copy_all(moves.first)
        moves.move(moves.first, moves.second)
        published_by_first(moves)
        write(moves.second, 3)
        copy_all(moves.second)
        moves.move(moves.second, third)
        write(third, 4)
        with running(third) as producer:
            assert isinstance(Running(moves.second).ended(), OwnershipMoved)
            producer.caught_up()
        assert states(third.require_equal("public.t")) == {"r": 2, "c": 2}


@pytest.mark.long
@on_the_oldest_too
def test_schema_that_moves_back_resumes_without_a_re_snapshot(moves: Moves) -> None:
    copy_all(moves.first)
    moves.move(moves.first, moves.second)
    published_by_first(moves)
    write(moves.second, 3)
    copy_all(moves.second)
    # The first database is discarded, since it owns nothing. It comes back as a copy of the second.
    moves.move(moves.second, moves.first)
    write(moves.first, 4)
    with running(moves.first) as producer:
        assert isinstance(Running(moves.second).ended(), OwnershipMoved)
        producer.caught_up()
        assert of_check(moves.first) == []
    assert moves.first.recorded().handovers == {}
    write(moves.first, 5)
    assert of_check(moves.first) == []
    copy_all(moves.first)
    assert states(moves.first.require_equal("public.t")) == {"r": 2, "c": 3}
    # And away once more.
    moves.move(moves.first, moves.second)
    write(moves.second, 6)
    published_by_first(moves)
    copy_all(moves.second)
    assert states(moves.second.require_equal("public.t")) == {"r": 2, "c": 4}


def test_schema_that_moves_back_ignores_positions_of_the_lost_server(
    moves: Moves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That server continued after the copy was promoted, at least with heartbeats, and so did its producer."""

    def of_a_copy(connection: psycopg.Connection[Any], recorded: StreamState | None) -> ServerWal:
        found = server_wal(connection, recorded)
        if recorded is None or recorded.source != "first":
            return found
        return replace(found, timeline=found.timeline + 2, parted={found.timeline: Lsn(recorded.commit_lsn - 1)})

    copy_all(moves.first)
    moves.move(moves.first, moves.second)
    published_by_first(moves)
    write(moves.second, 3)
    copy_all(moves.second)
    moves.move(moves.second, moves.first)
    assert isinstance(Running(moves.second).ended(), OwnershipMoved)
    write(moves.first, 4)
    monkeypatch.setattr("producers.session.resume.server_wal", of_a_copy)
    copy_all(moves.first)
    assert states(moves.first.require_equal("public.t")) == {"r": 2, "c": 2}


@pytest.mark.long
def test_schema_that_moves_back_waits_for_the_other_producer(moves: Moves) -> None:
    copy_all(moves.first)
    moves.move(moves.first, moves.second)
    published_by_first(moves)
    copy_all(moves.second)
    write(moves.second, 3)
    moves.move(moves.second, moves.first)
    words = "gitlab_main was given to first, but the producer of second has not yet published all earlier changes"
    assert of_check(moves.first) == [words], "and no gap"
    waiting = Running(moves.first)
    waiting.stop.set()
    assert waiting.ended() is None
    assert "gitlab_main" in moves.first.recorded().handovers, "nothing is claimed yet"
    assert isinstance(Running(moves.second).ended(), OwnershipMoved)
    copy_all(moves.first)
    assert states(moves.first.require_equal("public.t")) == {"r": 2, "c": 1}


def test_shared_table_is_re_snapshotted_after_a_move_back(
    bootstrap_servers: str, prefix: str, server: DatabaseServer
) -> None:
    """Its topic belongs to the database, and had the rows of the discarded one."""
    with closing(Moves(bootstrap_servers, prefix, server, tables=("public.t", "public.shared"))) as moves:
        copy_all(moves.first)
        moves.first.connection.execute("INSERT INTO shared VALUES (2)")
        give(moves.first, "second")
        copy_all(moves.first)
        moves.copy(moves.first, moves.second)
        make_slot(moves.second)
        open_as(moves.second)
        moves.second.connection.execute("DELETE FROM shared; INSERT INTO shared VALUES (7)")
        write(moves.second, 3)
        copy_all(moves.second)
        give(moves.second, "first")
        copy_all(moves.second)
        moves.copy(moves.second, moves.first)
        make_slot(moves.first)
        open_as(moves.first)
        write(moves.first, 4)
        copy_all(moves.first)
        assert states(moves.first.require_equal("public.t")) == {"r": 2, "c": 2}
        assert folded_shared(moves) == {("7",)}


def folded_shared(moves: Moves) -> set[tuple[str | None, ...]]:
    topic = table_topic(moves.settings.prefix, "gitlab_shared", "first", "public", "shared")
    return set(folded_rows(read_topic(moves.settings, topic)))
