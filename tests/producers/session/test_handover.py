"""A source publishes what its database owns, up to the change of owner, and the next source continues after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from consumers.testing.waiting import until
from infra.postgres.control import Owner, ensure_control_schema
from infra.state.positions import HandoverState, SnapshotState, SourceState, StreamState, read_sources
from producers.session import handover as ownership
from producers.session.handover import HandoverAwaited, TwoSources, source_scope
from producers.session.resume import ServerWal, refuse_gaps
from producers.session.start_over import start_over
from producers.source import slots
from producers.source.gaps import SilentGap
from producers.source.tables import CapturedTable
from schemas.errors import OwnershipMoved
from schemas.positions import Lsn
from tests.conftest import Database
from tests.producers.captures import TABLE
from tests.producers.folding import states
from tests.producers.sources import Running, Source, copy_all, database_section, running

NewSource = Callable[..., Source]

STREAM = StreamState(
    source="main", instance="i", slot="s", system_identifier="7", commit_lsn=Lsn(90), ordinal=0,
    confirmed_lsn=Lsn(100), ts_ms=0,
)  # fmt: skip
COPIED = SnapshotState(source="main", table=TABLE.name, topic=TABLE.topic, done=True)


def given(owner: str = "ci", epoch: int = 2) -> HandoverState:
    return HandoverState(
        source="main", gitlab_schema="gitlab_main", owner=owner, epoch=epoch, commit_lsn=Lsn(200), ordinal=3,
        confirmed_lsn=Lsn(201), snapshots=(COPIED,),
    )  # fmt: skip


def scope_of(source: str, sources: Mapping[str, SourceState], owner: Owner | None) -> ownership.Scope:
    return source_scope(source, [TABLE], sources, {"gitlab_main": owner} if owner else {})


def test_source_whose_schema_never_moved_needs_no_handover() -> None:
    for owner in (None, Owner("main", 1)):
        assert scope_of("main", {"main": SourceState(STREAM, {TABLE.name: COPIED})}, owner) == ownership.Scope()


def test_two_databases_that_both_claim_a_schema_never_publish_to_one_topic() -> None:
    publishing = {"main": SourceState(STREAM, {TABLE.name: COPIED})}
    for owner in (None, Owner("ci", 1)):
        with pytest.raises(TwoSources, match=f"main publishes {TABLE.name} to topic {TABLE.topic} too, and no switch"):
            scope_of("ci", publishing, owner)
    assert scope_of("main", {**publishing, "ci": SourceState(STREAM)}, Owner("main", 1)) == ownership.Scope()


def test_lagging_producer_publishes_up_to_the_change_of_owner() -> None:
    state = SourceState(STREAM, {TABLE.name: COPIED})
    assert not scope_of("main", {"main": state}, Owner("ci", 2)).away


def test_source_ignores_another_owner_s_table_that_it_never_published() -> None:
    with pytest.raises(OwnershipMoved, match="database main has given every captured table to another"):
        scope_of("main", {}, Owner("ci", 2))


def test_source_ends_once_all_schemas_are_given_away_and_continues_before() -> None:
    state = {"main": SourceState(STREAM, handovers={"gitlab_main": given()})}
    with pytest.raises(OwnershipMoved, match="drop its slot once the switchover is complete"):
        scope_of("main", state, Owner("ci", 2))
    taken_back = scope_of("main", state, Owner("main", 3))
    assert taken_back.away == {"gitlab_main"}, "until the stream has the change"
    assert taken_back.given == {TABLE.name: COPIED}


def test_new_owner_waits_for_the_old_one_and_continues_after_it() -> None:
    publishing = {"main": SourceState(STREAM, {TABLE.name: COPIED})}
    with pytest.raises(HandoverAwaited, match="gitlab_main was given to ci, but the producer of main has not yet"):
        scope_of("ci", publishing, Owner("ci", 2))
    with pytest.raises(HandoverAwaited):  # of a switchover that was taken back
        scope_of("ci", {"main": SourceState(STREAM, handovers={"gitlab_main": given()})}, Owner("ci", 4))
    done = scope_of("ci", {"main": SourceState(STREAM, handovers={"gitlab_main": given()})}, Owner("ci", 2))
    assert done.handover == given()
    assert done.inherited == {TABLE.name: COPIED.model_copy(update={"source": "ci"})}
    assert scope_of("ci", {}, Owner("ci", 2)) == ownership.Scope(), "no source published it before"
    started = {"main": SourceState(STREAM, handovers={"gitlab_main": given()}), "ci": SourceState(STREAM)}
    assert scope_of("ci", started, Owner("ci", 2)) == ownership.Scope(), "by its own record from then on"


def gave(source: str, owner: str, epoch: int) -> SourceState:
    record = given(owner, epoch).model_copy(update={"source": source})
    return SourceState(STREAM, handovers={"gitlab_main": record})


def test_last_of_several_previous_owners_counts() -> None:
    publishes = SourceState(STREAM, {TABLE.name: COPIED})
    with pytest.raises(HandoverAwaited, match="the producer of ci has not yet published all"):
        scope_of("sec", {"main": gave("main", "ci", 2), "ci": publishes}, Owner("sec", 3))
    with pytest.raises(HandoverAwaited, match="the producer of ci has not yet published all"):
        scope_of("sec", {"main": gave("main", "ci", 2)}, Owner("sec", 3))  # it has not started
    last = scope_of("sec", {"main": gave("main", "ci", 2), "ci": gave("ci", "sec", 3)}, Owner("sec", 3))
    assert last.handover is not None
    assert last.handover.source == "ci"


def test_schema_given_back_ends_the_earlier_stream() -> None:
    shared = SnapshotState(source="main", table="public.s", topic="s", done=True)
    own = SourceState(STREAM, {"public.s": shared}, gave("main", "ci", 2).handovers)
    back = scope_of("main", {"main": own, "ci": gave("ci", "main", 3)}, Owner("main", 3))
    assert (set(back.returned), set(back.away)) == ({"gitlab_main"}, set())
    assert back.handover is not None
    assert back.handover.epoch == 3
    known = back.of(own)
    assert known.stream is None
    assert known.snapshots[TABLE.name].done, "resumed"
    assert known.snapshots["public.s"].from_scratch, "it was another server's"
    with pytest.raises(HandoverAwaited, match="the producer of ci"):
        scope_of("main", {"main": own, "ci": SourceState(STREAM, {TABLE.name: COPIED})}, Owner("main", 3))


def test_position_in_the_earlier_wal_is_ignored_once_all_schemas_came_back() -> None:
    """The producer of the earlier server confirmed its own heartbeats until its end."""
    stream = STREAM.model_copy(update={"timeline": 1, "confirmed_lsn": Lsn(900)})
    own = SourceState(stream, handovers=gave("main", "ci", 2).handovers)
    server = ServerWal("7", 3, Lsn(1000), {1: Lsn(500), 2: Lsn(800)})
    back = scope_of("main", {"main": own, "ci": gave("ci", "main", 3)}, Owner("main", 3))
    refuse_gaps(back.of(own), slot(700), "s", server)
    away = scope_of("main", {"main": own}, Owner("main", 3))
    with pytest.raises(SilentGap, match="which this server left at 0/1F4"):
        refuse_gaps(away.of(own), slot(700), "s", server)


def test_schema_taken_back_needs_no_handover_from_another_source() -> None:
    """By --abort, after moves there and back: the other source's record is from an earlier move."""
    own = gave("main", "ci", 4)
    taken_back = scope_of("main", {"main": own, "ci": gave("ci", "main", 3)}, Owner("main", 5))
    assert taken_back.away == {"gitlab_main"}, "until the stream says so"
    assert taken_back.of(own).stream == STREAM


def test_copy_with_a_schema_given_back_has_stale_rows_of_kept_schemas() -> None:
    kept = replace_schema(TABLE, "gitlab_ci", "public.kept")
    own = SourceState(
        STREAM, {"public.kept": COPIED.model_copy(update={"table": "public.kept"})}, gave("main", "ci", 2).handovers
    )
    owners = {"gitlab_main": Owner("main", 3), "gitlab_ci": Owner("main", 1)}
    with pytest.raises(SilentGap, match=r"gitlab_ci was published from a different server .* its rows here are stale"):
        source_scope("main", [TABLE, kept], {"main": own, "ci": gave("ci", "main", 3)}, owners)


def replace_schema(table: CapturedTable, gitlab_schema: str, name: str) -> CapturedTable:
    relation = replace(table.relation, table=name.partition(".")[2])
    return replace(table, gitlab_schema=gitlab_schema, relation=relation, topic="t.kept")


def test_owner_that_passed_a_schema_on_before_its_first_start_publishes_its_tenure() -> None:
    main = gave("main", "ci", 2)
    late = scope_of("ci", {"main": main}, Owner("sec", 3))
    assert late.handover == main.handovers["gitlab_main"]
    assert not late.away, "up to the change of owner in its own stream"
    with pytest.raises(OwnershipMoved):  # it never had it
        scope_of("other", {"main": main}, Owner("sec", 3))
    ci = gave("ci", "sec", 3)
    with pytest.raises(OwnershipMoved):  # it has done so
        scope_of("ci", {"main": main, "ci": ci}, Owner("sec", 3))


def slot(confirmed: int) -> slots.SlotState:
    return slots.SlotState("s", "pgoutput", "d", None, Lsn(confirmed), Lsn(1), "reserved", None, None, False, False)


def first(found: slots.SlotState | None, opened: int | None) -> tuple[int, int]:
    lsn = None if opened is None else Lsn(opened)
    state = ownership.first_state("ci", "i", "s", found, "7", given(), lsn)
    return state.commit_lsn, state.confirmed_lsn


def test_stream_begins_after_the_handover_or_at_the_slot_s_start() -> None:
    assert first(slot(150), None) == (200, 201)
    assert first(slot(201), None) == (200, 201)
    assert first(slot(250), 250) == (249, 250)
    assert first(slot(250), 300) == (249, 250)


@pytest.mark.parametrize(
    ("found", "opened", "words"),
    [
        (None, 300, "slot s, which the switchover created, no longer exists"),
        (slot(250), 249, "slot s begins at 0/FA, after gitlab_main was opened here at 0/F9: changes in between"),
        (slot(250), 100, "after gitlab_main was opened here at 0/64"),  # of an earlier switchover
        (slot(202), None, r"at 0/CA, after gitlab_main was given to ci at 0/C8, and headrace.database does not record"),
        (replace(slot(250), made=False, confirmed_flush=None, active_pid=7), 300, "still being created by process 7"),
    ],
)
def test_slot_that_may_lack_changes_is_refused(found: slots.SlotState | None, opened: int | None, words: str) -> None:
    with pytest.raises(SilentGap, match=words) as caught:
        first(found, opened)
    assert "re-snapshot all tables with `headrace produce ci --start-over`" in caught.value.remedy


# On real servers.

TWO = (
    "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2);"
    "CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1)"
)
GIVE = "UPDATE headrace.schema_ownership SET owner = 'other', epoch = epoch + 1 WHERE gitlab_schema = 'gitlab_main'"
TAKE_BACK = "UPDATE headrace.schema_ownership SET owner = 'main', epoch = epoch + 1 WHERE gitlab_schema = 'gitlab_main'"
BOTH = {
    "gitlab_schemas": ["gitlab_main", "gitlab_ci"],
    "table_schemas": {"public.t": "gitlab_main", "public.u": "gitlab_ci"},
}


def handover(source: Source) -> HandoverState | None:
    return source.recorded().handovers.get("gitlab_main")


@pytest.mark.stack
def test_schema_given_away_stops_and_others_continue(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t", "public.u", **BOTH)
    with running(source) as producer:
        producer.caught_up()
        source.connection.execute("INSERT INTO t VALUES (3)")
        source.connection.execute(GIVE)
        source.connection.execute("INSERT INTO t VALUES (4); INSERT INTO u VALUES (2); TRUNCATE t")
        source.passes(producer.check)
    record = handover(source)
    assert record is not None
    assert (record.owner, record.epoch) == ("other", 2)
    assert [each.table for each in record.snapshots] == ["public.t"]
    assert list(source.recorded().snapshots) == ["public.u"]
    copy_all(source)  # a start that finds it recorded leaves it alone too
    assert states(source.records("public.t")) == {"r": 2, "c": 1}


@pytest.mark.stack
def test_producer_ends_with_the_last_schema_given_away_and_restarts_when_taken_back(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t")
    producer = Running(source)
    producer.caught_up()
    source.connection.execute(GIVE)
    for _ in range(2):
        ended = producer.ended()
        assert isinstance(ended, OwnershipMoved)
        assert ended.exit_code == 3
        producer = Running(source)
    producer.ended()
    source.connection.execute(TAKE_BACK)
    source.connection.execute("INSERT INTO t VALUES (3)")
    copy_all(source)
    assert handover(source) is None
    assert states(source.require_equal("public.t")) == {"r": 2, "c": 1}


@pytest.mark.stack
def test_schema_given_away_twice_while_the_producer_was_stopped(new_source: NewSource) -> None:
    source = new_source(TWO, "public.t")
    copy_all(source)
    for number, statement in enumerate((GIVE, TAKE_BACK, GIVE)):
        source.connection.execute(statement)
        if number == 1:
            source.connection.execute("INSERT INTO t VALUES (3)")
    assert isinstance(Running(source).ended(), OwnershipMoved)
    record = handover(source)
    assert record is not None
    assert record.epoch == 4
    assert states(source.require_equal("public.t")) == {"r": 2, "c": 1}


@pytest.mark.stack
def test_table_given_away_during_its_snapshot_is_copied_no_further(new_source: NewSource) -> None:
    source = new_source(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 20000)",
        "public.t",
        snapshot={"chunk_rows": 5},
    )
    producer = Running(source)
    until(lambda: any(each.chunks_done > 3 for each in source.state().snapshots.values()), "a few chunks")
    source.connection.execute(GIVE)
    assert isinstance(producer.ended(), OwnershipMoved)
    record = handover(source)
    assert record is not None
    (snapshot,) = record.snapshots
    assert not snapshot.done
    assert len(source.records("public.t")) == snapshot.rows < 20_000


@pytest.mark.stack
def test_start_over_ends_a_source_that_is_lost(
    new_source: NewSource, new_databases: Callable[[str | None], Database]
) -> None:
    gone = new_source(TWO, "public.t")
    copy_all(gone)
    connection = new_databases(None).connect()
    connection.execute(TWO)
    ensure_control_schema(connection, "ci", ["gitlab_main"])
    connection.execute("UPDATE headrace.schema_ownership SET epoch = 2")
    connection.execute("DELETE FROM t WHERE id = 1")
    section = database_section(connection.info.dsn + f" password={connection.info.password}", "public.t")
    settings = gone.settings.model_copy(update={"databases": {"ci": section}})
    new = Source(settings, connection, name="ci")
    waiting = Running(new)
    waiting.stop.set()
    assert waiting.ended() is None, "it waits for the other producer, and does not fail"
    start_over(settings, "ci")
    copy_all(new)
    assert states(new.require_equal("public.t")) == {"r": 1}
    with pytest.raises(OwnershipMoved):
        source_scope("main", [TABLE], read_sources(settings), {"gitlab_main": Owner("ci", 2)})
