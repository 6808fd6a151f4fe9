"""The remedies of docs/how-to/switchover.md, each followed exactly on real servers."""

from __future__ import annotations

import psycopg
import pytest

from infra.postgres.control import Owner, database_name, owners
from producers.source import slots
from producers.switchover.endpoints import NotMovable
from producers.switchover.step_limit import Busy
from producers.switchover.steps import PastNoReturn
from schemas.errors import HeadraceError
from tests.producers.switchover.ends import CI, MAIN, SHARED, Ends, on_the_oldest_too

pytestmark = pytest.mark.stack

BY_HAND = "UPDATE headrace.schema_ownership SET owner = %s, epoch = %s WHERE gitlab_schema = %s"


def promoted_without_the_close(ends: Ends, gitlab_schema: str) -> None:
    """Close it as the command does, with a copy that no longer receives that and is promoted."""
    ends.stop_receiving("second")
    ends.first.execute(
        "INSERT INTO headrace.switchovers (gitlab_schema, id, source, destination, epoch, stage)"
        " VALUES (%s, gen_random_uuid(), 'first', 'second', 2, 'closed')",
        (gitlab_schema,),
    )
    ends.first.execute(BY_HAND, ("second", 2, gitlab_schema))
    ends.standby.promote()


@on_the_oldest_too
def test_every_step_shows_its_state(ends: Ends) -> None:
    assert ends.states(CI) == ["a standby", "not started"]
    ends.run_to("replay", CI)
    assert ends.states(CI) == ["a standby", "replayed"]
    ends.run_to("slot", CI)
    assert ends.states(CI) == ["promoted", "promoted"]
    ends.run_to("release", CI)
    assert ends.states(CI) == ["promoted", "released"]
    with pytest.raises(PastNoReturn, match="complete it by running the switchover of gitlab_ci again, without --abort"):
        ends.abort(CI)
    assert ends.run(CI)
    assert ends.states(CI, MAIN) == ["named", "open", "left behind"]


def test_closed_with_a_copy_that_cannot_follow(ends: Ends) -> None:
    ends.run_to("close", CI)
    ends.stop_receiving("second")
    with pytest.raises(HeadraceError, match="--abort again to take back the rest") as timed_out:
        ends.abort(CI, seconds=3.0)
    assert "un it again" not in str(timed_out.value)
    ends.new_second()
    ends.abort(CI)
    assert ends.open_on(CI) == ["first"]


def test_left_behind_by_a_copy_that_was_given_nothing(ends: Ends) -> None:
    ends.standby.promote()
    assert ends.states(CI) == ["promoted", "left behind"]
    with pytest.raises(NotMovable, match="rebuild it as a standby of first"):
        ends.run(CI)
    ends.new_second()
    assert ends.run(CI)


def test_left_behind_by_a_copy_that_owns_something(ends: Ends) -> None:
    assert ends.run(MAIN)
    with pytest.raises(NotMovable, match="keep second as it is, and move gitlab_ci to another standby of first"):
        ends.run(CI)
    ends.server.forget_standby(ends.name)  # as is to be done after every move
    with ends.other_standby("third") as third:
        ends.lead("third", third)
        assert ends.run(CI, to="third")
        with psycopg.connect(third) as connection:
            assert database_name(connection) == "third"
            assert {name: owner.name for name, owner in owners(connection).items()} == {
                CI: "third",
                MAIN: "second",
                SHARED: "third",
            }
    assert ends.open_on(MAIN) == ["second"]


@on_the_oldest_too
def test_missed(ends: Ends) -> None:
    promoted_without_the_close(ends, CI)
    assert ends.states(CI) == ["promoted", "missed"]
    with pytest.raises(
        NotMovable, match="take gitlab_ci back with --abort; unless first failed over to it, rebuild it"
    ):
        ends.run(CI)
    ends.abort(CI)
    assert ends.states(CI) == ["promoted", "left behind"]
    ends.new_second()
    assert ends.run(CI)


def test_closed_by_an_earlier_switchover_and_not_named(ends: Ends) -> None:
    ends.run_to("replay", MAIN)
    with pytest.raises(NotMovable, match="name gitlab_main too, or take it back with --abort"):
        ends.run(CI)
    assert ends.owners_of(CI)[0] == Owner("first", 1)
    assert ends.run(CI, MAIN)
    assert ends.open_on(CI) == ends.open_on(MAIN) == ["second"]


@on_the_oldest_too
def test_stale(ends: Ends) -> None:
    assert ends.run(CI)
    with ends.other_standby("wrong") as wrong:
        ends.lead("second", wrong)
        assert ends.states(CI) == ["a standby", "stale"]
        for command in (ends.run, ends.abort):
            with pytest.raises(NotMovable, match=r"point databases\.second\.dsn at the server that has it"):
                command(CI)
    ends.lead("second", ends.second_dsn)
    assert ends.run(CI)


def test_another_copy_with_the_same_rows_is_not_opened(ends: Ends) -> None:
    with ends.other_standby("twin") as twin:
        ends.run_to("slot", CI)
        assert ends.run(CI)
        ends.server_of("twin").promote()
        ends.lead("second", twin)
        assert ends.states(CI) == ["promoted", "stale"]
        with pytest.raises(NotMovable, match="its rows there are stale"):
            ends.run(CI)
        with psycopg.connect(twin) as connection:
            assert database_name(connection) == "first"


def test_not_recorded_and_not_owned_there(ends: Ends) -> None:
    ends.first.execute(BY_HAND, ("second", 2, CI))
    assert ends.states(CI) == ["a standby", "not recorded"]
    with pytest.raises(NotMovable, match="no switchover between them is on record; see `not recorded` in docs/how-to"):
        ends.abort(CI)
    ends.follow("give back", ends.first)
    assert ends.states(CI) == ["a standby", "not started"]
    assert ends.run(CI)


def test_not_recorded_and_owned_there(ends: Ends) -> None:
    assert ends.run(CI)
    ends.first.execute("DELETE FROM headrace.switchovers")
    assert ends.states(CI) == ["named", "not recorded"]
    ends.follow("record the release", ends.first)
    assert ends.states(CI) == ["named", "open"]
    assert ends.run(CI)


@pytest.mark.parametrize("keeper", ["first", "second"])
def test_two_owners(ends: Ends, keeper: str) -> None:
    assert ends.run(CI)
    ends.first.execute(BY_HAND, ("first", 3, CI))
    assert ends.states(CI) == ["named", "two owners"]
    for command in (ends.run, ends.abort):
        with pytest.raises(NotMovable, match="gitlab_ci is open on both first and second; stop the writers of one"):
            command(CI)
    if keeper == "second":
        ends.follow("give away", ends.first)
        ends.follow("record the release", ends.first)
        assert ends.states(CI) == ["named", "open"]
    else:
        ends.follow("give up", ends.second)
        assert ends.states(CI) == ["named", "left behind"]
    assert ends.open_on(CI) == [keeper]


@pytest.mark.long
def test_another_standby_is_disconnected(ends: Ends) -> None:
    with ends.other_standby("spare"):
        ends.stop_receiving("spare")
        name = f"{ends.name}_spare"
        with pytest.raises(
            Busy, match=rf"{name} \(is disconnected\)\. Bring it back, drop its slot if it is gone for good"
        ):
            ends.run(CI, seconds=5.0)
        assert ends.owners_of(CI)[0] == Owner("first", 1), "nothing is closed yet"
        ends.server_of("spare").abandon()
        ends.first.execute("SELECT pg_drop_replication_slot(%s)", (name,))
        assert ends.run(CI)


def test_another_standby_is_never_promoted(ends: Ends) -> None:
    with ends.other_standby("spare"):
        ends.stop_receiving("spare")
        assert ends.run(CI, without=frozenset({f"{ends.name}_spare"}))


@pytest.mark.long
def test_synchronous_standby_that_does_not_answer(ends: Ends) -> None:
    with ends.setting("synchronous_standby_names", "nobody"):
        with pytest.raises(Busy, match="the synchronous standbys of first"):
            ends.run(CI, seconds=5.0)
        assert ends.owners_of(CI)[0] == Owner("first", 1), "nothing is closed yet"
    assert ends.run(CI)


@pytest.mark.long
def test_synchronous_standby_that_is_the_promoted_copy(ends: Ends) -> None:
    with ends.setting("synchronous_standby_names", f"{ends.name}_anew"):
        ends.new_second()  # which has the same setting: it was copied
        ends.run_to("promote", CI)
        with pytest.raises(Busy, match="the synchronous standbys of first"):
            ends.run(CI, seconds=5.0)
        assert ends.states(CI) == ["promoted", "promoted"]
    assert ends.run(CI)


@pytest.mark.long
def test_slot_that_waits_for_a_prepared_transaction_names_it(ends: Ends) -> None:
    ends.first.execute("BEGIN; CREATE TABLE public.held (id int); PREPARE TRANSACTION 'held on first'")
    try:
        with pytest.raises(Busy, match=r"slot .* on second, which waits for prepared transaction 'held on first'"):
            ends.run(CI, seconds=5.0)
        assert ends.states(CI) == ["promoted", "promoted"]
    finally:
        ends.first.execute("ROLLBACK PREPARED 'held on first'")
    assert slots.read(ends.second, ends.slot) is None
    ends.second.execute("ROLLBACK PREPARED 'held on first'")
    assert ends.run(CI)
