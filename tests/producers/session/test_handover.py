"""A source publishes what its database owns, up to the change of owner, and the next one goes on behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from infra.postgres.control import Owner, ensure_control_schema
from infra.state.positions import HandoverState, SnapshotState, SourceState, StreamState, read_sources
from producers.session import handover as ownership
from producers.session.handover import HandoverAwaited, standing
from producers.session.resume import ServerLog, refuse_gaps
from producers.session.start_over import start_over
from producers.source import slots
from producers.source.gaps import SilentGap
from producers.source.tables import CapturedTable
from schemas.errors import OwnershipMoved
from schemas.positions import Lsn
from tests.conftest import Database
from tests.producers.captures import TABLE
from tests.producers.folding import states
from tests.producers.sources import Running, Source, copy_all, database_section, running, until

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


def stands(source: str, sources: Mapping[str, SourceState], owner: Owner | None) -> ownership.Standing:
    return standing(source, [TABLE], sources, {"gitlab_main": owner} if owner else {})


def test_nothing_is_asked_of_a_source_whose_schema_never_moved() -> None:
    for owner in (None, Owner("main", 1)):
        assert stands("main", {"main": SourceState(STREAM, {TABLE.name: COPIED})}, owner) == ownership.Standing()


def test_a_producer_that_is_behind_publishes_up_to_the_change_of_owner() -> None:
    state = SourceState(STREAM, {TABLE.name: COPIED})
    assert not stands("main", {"main": state}, Owner("ci", 2)).away


def test_who_never_published_a_table_leaves_another_owner_s_alone() -> None:
    with pytest.raises(OwnershipMoved, match="database main has given every captured table to another"):
        stands("main", {}, Owner("ci", 2))


def test_who_gave_it_away_ends_once_that_is_all_and_reads_on_while_it_is_not() -> None:
    state = {"main": SourceState(STREAM, handovers={"gitlab_main": given()})}
    with pytest.raises(OwnershipMoved, match="drop its slot once the switchover is complete"):
        stands("main", state, Owner("ci", 2))
    taken_back = stands("main", state, Owner("main", 3))
    assert taken_back.away == {"gitlab_main"}, "until the stream says so"
    assert taken_back.given == {TABLE.name: COPIED}


def test_the_new_owner_waits_for_the_old_one_and_goes_on_behind_it() -> None:
    publishing = {"main": SourceState(STREAM, {TABLE.name: COPIED})}
    with pytest.raises(HandoverAwaited, match="gitlab_main was given to ci, and the producer of main has not yet"):
        stands("ci", publishing, Owner("ci", 2))
    with pytest.raises(HandoverAwaited):  # of a switchover that was taken back
        stands("ci", {"main": SourceState(STREAM, handovers={"gitlab_main": given()})}, Owner("ci", 4))
    done = stands("ci", {"main": SourceState(STREAM, handovers={"gitlab_main": given()})}, Owner("ci", 2))
    assert done.handover == given()
    assert done.inherited == {TABLE.name: COPIED.model_copy(update={"source": "ci"})}
    assert stands("ci", {}, Owner("ci", 2)) == ownership.Standing(), "nobody published it before"
    started = {"main": SourceState(STREAM, handovers={"gitlab_main": given()}), "ci": SourceState(STREAM)}
    assert stands("ci", started, Owner("ci", 2)) == ownership.Standing(), "by its own record from then on"


def gave(source: str, owner: str, epoch: int) -> SourceState:
    record = given(owner, epoch).model_copy(update={"source": source})
    return SourceState(STREAM, handovers={"gitlab_main": record})


def test_of_several_owners_before_the_last_one_counts() -> None:
    publishes = SourceState(STREAM, {TABLE.name: COPIED})
    with pytest.raises(HandoverAwaited, match="the producer of ci has not yet published all"):
        stands("sec", {"main": gave("main", "ci", 2), "ci": publishes}, Owner("sec", 3))
    with pytest.raises(HandoverAwaited, match="the producer of ci has not yet published all"):
        stands("sec", {"main": gave("main", "ci", 2)}, Owner("sec", 3))  # it has not begun
    last = stands("sec", {"main": gave("main", "ci", 2), "ci": gave("ci", "sec", 3)}, Owner("sec", 3))
    assert last.handover is not None
    assert last.handover.source == "ci"


def test_what_was_given_back_ends_the_stream_of_before() -> None:
    shared = SnapshotState(source="main", table="public.s", topic="s", done=True)
    own = SourceState(STREAM, {"public.s": shared}, gave("main", "ci", 2).handovers)
    back = stands("main", {"main": own, "ci": gave("ci", "main", 3)}, Owner("main", 3))
    assert (set(back.returned), set(back.away)) == ({"gitlab_main"}, set())
    assert back.handover is not None
    assert back.handover.epoch == 3
    known = back.of(own)
    assert known.stream is None
    assert known.snapshots[TABLE.name].done, "read on"
    assert known.snapshots["public.s"].anew, "it was another server's"
    with pytest.raises(HandoverAwaited, match="the producer of ci"):
        stands("main", {"main": own, "ci": SourceState(STREAM, {TABLE.name: COPIED})}, Owner("main", 3))


def test_how_far_the_log_was_read_that_was_left_says_nothing_once_all_came_back() -> None:
    """The producer of the server before has confirmed its own heartbeats until the end."""
    stream = STREAM.model_copy(update={"timeline": 1, "confirmed_lsn": Lsn(900)})
    own = SourceState(stream, handovers=gave("main", "ci", 2).handovers)
    server = ServerLog("7", 3, Lsn(1000), {1: Lsn(500), 2: Lsn(800)})
    back = stands("main", {"main": own, "ci": gave("ci", "main", 3)}, Owner("main", 3))
    refuse_gaps(back.of(own), slot(700), "s", server)
    away = stands("main", {"main": own}, Owner("main", 3))
    with pytest.raises(SilentGap, match="which this server left at 0/1F4"):
        refuse_gaps(away.of(own), slot(700), "s", server)


def test_what_was_taken_back_is_no_one_else_s_to_hand_over() -> None:
    """By --abort, after moves there and back: the other's record is of an earlier move."""
    own = gave("main", "ci", 4)
    taken_back = stands("main", {"main": own, "ci": gave("ci", "main", 3)}, Owner("main", 5))
    assert taken_back.away == {"gitlab_main"}, "until the stream says so"
    assert taken_back.of(own).stream == STREAM


def test_a_copy_in_which_one_came_back_has_stale_rows_of_what_the_source_kept() -> None:
    kept = replace_schema(TABLE, "gitlab_ci", "public.kept")
    own = SourceState(
        STREAM, {"public.kept": COPIED.model_copy(update={"table": "public.kept"})}, gave("main", "ci", 2).handovers
    )
    owners = {"gitlab_main": Owner("main", 3), "gitlab_ci": Owner("main", 1)}
    with pytest.raises(SilentGap, match=r"gitlab_ci was published from another server .* its rows here are stale"):
        standing("main", [TABLE, kept], {"main": own, "ci": gave("ci", "main", 3)}, owners)


def replace_schema(table: CapturedTable, gitlab_schema: str, name: str) -> CapturedTable:
    relation = replace(table.relation, table=name.partition(".")[2])
    return replace(table, gitlab_schema=gitlab_schema, relation=relation, topic="t.kept")


def test_who_has_given_it_on_before_its_producer_ever_ran_publishes_what_was_written_in_between() -> None:
    main = gave("main", "ci", 2)
    late = stands("ci", {"main": main}, Owner("sec", 3))
    assert late.handover == main.handovers["gitlab_main"]
    assert not late.away, "up to the change of owner in its own stream"
    with pytest.raises(OwnershipMoved):  # it never had it
        stands("other", {"main": main}, Owner("sec", 3))
    ci = gave("ci", "sec", 3)
    with pytest.raises(OwnershipMoved):  # it has done so
        stands("ci", {"main": main, "ci": ci}, Owner("sec", 3))


def slot(confirmed: int) -> slots.SlotState:
    return slots.SlotState("s", "pgoutput", "d", None, Lsn(confirmed), Lsn(1), "reserved", None, None, False, False)


def first(found: slots.SlotState | None, opened: int | None) -> tuple[int, int]:
    lsn = None if opened is None else Lsn(opened)
    state = ownership.first_state("ci", "i", "s", found, "7", given(), lsn)
    return state.commit_lsn, state.confirmed_lsn


def test_the_stream_begins_behind_the_handover_or_where_the_slot_was_made() -> None:
    assert first(slot(150), None) == (200, 201)
    assert first(slot(201), None) == (200, 201)
    assert first(slot(250), 250) == (249, 250)
    assert first(slot(250), 300) == (249, 250)


@pytest.mark.parametrize(
    ("found", "opened", "words"),
    [
        (None, 300, "slot s, which the switchover made, does not exist any more"),
        (slot(250), 249, "slot s begins at 0/FA, after gitlab_main was opened here at 0/F9: what was written in"),
        (slot(250), 100, "after gitlab_main was opened here at 0/64"),  # of an earlier switchover
        (slot(202), None, r"at 0/CA, after gitlab_main was given to ci at 0/C8, and headrace.database does not say"),
        (replace(slot(250), made=False, confirmed_flush=None, active_pid=7), 300, "still being made by process 7"),
    ],
)
def test_a_slot_that_may_lack_what_was_written_is_refused(
    found: slots.SlotState | None, opened: int | None, words: str
) -> None:
    with pytest.raises(SilentGap, match=words) as caught:
        first(found, opened)
    assert "start over with `headrace produce ci --start-over`" in caught.value.remedy


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
def test_what_is_given_away_stops_there_and_the_others_go_on(new_source: NewSource) -> None:
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
def test_the_last_one_given_away_ends_the_producer_and_it_starts_again_when_taken_back(new_source: NewSource) -> None:
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
def test_given_away_taken_back_and_given_away_again_while_nobody_looked(new_source: NewSource) -> None:
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
def test_a_table_that_is_given_away_while_it_is_copied_is_copied_no_further(new_source: NewSource) -> None:
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
def test_a_source_that_is_gone_for_good_is_ended_by_starting_over(
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
    assert waiting.ended() is None, "it waits for the other, and is no failure"
    start_over(settings, "ci")
    copy_all(new)
    assert states(new.require_equal("public.t")) == {"r": 1}
    with pytest.raises(OwnershipMoved):
        standing("main", [TABLE], read_sources(settings), {"gitlab_main": Owner("ci", 2)})
