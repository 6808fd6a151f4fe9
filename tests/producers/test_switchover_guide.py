"""The remedies of docs/how-to/switchover.md, each followed to the letter on real servers."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from infra.control import Owner, database_name, owners
from producers import slots
from producers.move import Move, NotMovable
from producers.step_limit import Busy
from producers.switchover import PastNoReturn, opened
from producers.switchover_cli import status_report
from schemas.errors import HeadraceError
from tests.consumers.services import ROOT
from tests.producers.servers import own_server
from tests.producers.switchover_ends import CI, MAIN, SHARED, Ends

pytestmark = pytest.mark.stack

BY_HAND = "UPDATE headrace.schema_ownership SET owner = %s, epoch = %s WHERE gitlab_schema = %s"


def guide_sql(ends: Ends, title: str) -> list[str]:
    """Return the statements below `title`, with the names that these tests have."""
    text = (ROOT / "docs" / "how-to" / "switchover.md").read_text()
    found = re.findall(rf"<!-- sql: {title} -->\n```sql\n(.*?)```", text, re.DOTALL)
    assert found
    names = {"'main'": "'first'", "'ci'": "'second'", "'headrace_ci'": f"'{ends.slot}'"}
    return [re.sub("|".join(names), lambda each: names[each[0]], statement) for statement in found]


def follow(ends: Ends, title: str, connection: psycopg.Connection) -> None:
    for statement in guide_sql(ends, title):
        connection.execute(statement.encode())


def states(ends: Ends, *gitlab_schemas: str, to: str = "second") -> list[str]:
    """Return what --status shows: of the two databases, then of each gitlab schema."""
    with opened(ends.settings, Move(gitlab_schemas or (CI,), "first", to)) as moving:
        report = status_report(moving.look())
    return [report["ends"], *(each["state"] for each in report["states"])]


def promoted_without_the_close(ends: Ends, gitlab_schema: str) -> None:
    """Close it as the command does, at a copy that gets that no more and is promoted."""
    ends.stop_receiving("second")
    ends.first.execute(
        "INSERT INTO headrace.switchovers (gitlab_schema, id, source, destination, epoch, stage)"
        " VALUES (%s, gen_random_uuid(), 'first', 'second', 2, 'closed')",
        (gitlab_schema,),
    )
    ends.first.execute(BY_HAND, ("second", 2, gitlab_schema))
    ends.standby.promote()


def test_every_step_shows_its_state(ends: Ends) -> None:
    assert states(ends) == ["a standby", "not started"]
    ends.run_to("replay", CI)
    assert states(ends) == ["a standby", "replayed"]
    ends.run_to("slot", CI)
    assert states(ends) == ["promoted", "promoted"]
    ends.run_to("release", CI)
    assert states(ends) == ["promoted", "released"]
    with pytest.raises(PastNoReturn, match="complete it by running the switchover of gitlab_ci again, without --abort"):
        ends.abort(CI)
    assert ends.run(CI)
    assert states(ends, CI, MAIN) == ["named", "open", "left behind"]


def test_closed_at_a_copy_that_cannot_follow(ends: Ends) -> None:
    ends.run_to("close", CI)
    ends.stop_receiving("second")
    with pytest.raises(HeadraceError, match="--abort again, which takes back what is left") as timed_out:
        ends.abort(CI, seconds=3.0)
    assert "un it again" not in str(timed_out.value)
    ends.new_second()
    ends.abort(CI)
    assert ends.open_on(CI) == ["first"]


def test_left_behind_by_a_copy_that_was_given_nothing(ends: Ends) -> None:
    ends.standby.promote()
    assert states(ends) == ["promoted", "left behind"]
    with pytest.raises(NotMovable, match="make it a standby of first anew"):
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


def test_missed(ends: Ends) -> None:
    promoted_without_the_close(ends, CI)
    assert states(ends) == ["promoted", "missed"]
    with pytest.raises(NotMovable, match="take gitlab_ci back with --abort; unless first failed over to it, make it"):
        ends.run(CI)
    ends.abort(CI)
    assert states(ends) == ["promoted", "left behind"]
    ends.new_second()
    assert ends.run(CI)


def test_closed_by_an_earlier_switchover_and_not_named(ends: Ends) -> None:
    ends.run_to("replay", MAIN)
    with pytest.raises(NotMovable, match="name gitlab_main too, or take it back with --abort"):
        ends.run(CI)
    assert ends.owners_of(CI)[0] == Owner("first", 1)
    assert ends.run(CI, MAIN)
    assert ends.open_on(CI) == ends.open_on(MAIN) == ["second"]


def test_stale(ends: Ends) -> None:
    assert ends.run(CI)
    with ends.other_standby("wrong") as wrong:
        ends.lead("second", wrong)
        assert states(ends) == ["a standby", "stale"]
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
        assert states(ends) == ["promoted", "stale"]
        with pytest.raises(NotMovable, match="its rows there are stale"):
            ends.run(CI)
        with psycopg.connect(twin) as connection:
            assert database_name(connection) == "first"


def test_not_recorded_and_not_owned_there(ends: Ends) -> None:
    ends.first.execute(BY_HAND, ("second", 2, CI))
    assert states(ends) == ["a standby", "not recorded"]
    with pytest.raises(NotMovable, match="no switchover between them is on record; see `not recorded` in docs/how-to"):
        ends.abort(CI)
    follow(ends, "give back", ends.first)
    assert states(ends) == ["a standby", "not started"]
    assert ends.run(CI)


def test_not_recorded_and_owned_there(ends: Ends) -> None:
    assert ends.run(CI)
    ends.first.execute("DELETE FROM headrace.switchovers")
    assert states(ends) == ["named", "not recorded"]
    follow(ends, "record the release", ends.first)
    assert states(ends) == ["named", "open"]
    assert ends.run(CI)


@pytest.mark.parametrize("keeper", ["first", "second"])
def test_two_owners(ends: Ends, keeper: str) -> None:
    assert ends.run(CI)
    ends.first.execute(BY_HAND, ("first", 3, CI))
    assert states(ends) == ["named", "two owners"]
    for command in (ends.run, ends.abort):
        with pytest.raises(NotMovable, match="gitlab_ci is open on both first and second; stop the writers of one"):
            command(CI)
    if keeper == "second":
        follow(ends, "give away", ends.first)
        follow(ends, "record the release", ends.first)
        assert states(ends) == ["named", "open"]
    else:
        follow(ends, "give up", ends.second)
        assert states(ends) == ["named", "left behind"]
    assert ends.open_on(CI) == [keeper]


def test_another_standby_that_is_away(ends: Ends) -> None:
    with ends.other_standby("spare"):
        ends.stop_receiving("spare")
        name = f"{ends.name}_spare"
        with pytest.raises(Busy, match=rf"{name} \(is away\)\. Bring it back, drop its slot if it is gone for good"):
            ends.run(CI, seconds=5.0)
        assert ends.owners_of(CI)[0] == Owner("first", 1), "nothing is closed yet"
        ends.server_of("spare").abandon()
        ends.first.execute("SELECT pg_drop_replication_slot(%s)", (name,))
        assert ends.run(CI)


def test_another_standby_that_is_never_promoted(ends: Ends) -> None:
    with ends.other_standby("spare"):
        ends.stop_receiving("spare")
        assert ends.run(CI, without=frozenset({f"{ends.name}_spare"}))


def test_a_synchronous_standby_that_does_not_answer(ends: Ends) -> None:
    ends.first.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    ends.first.execute("SELECT pg_reload_conf()")
    try:
        with pytest.raises(Busy, match="the synchronous standbys of first"):
            ends.run(CI, seconds=5.0)
        assert ends.owners_of(CI)[0] == Owner("first", 1), "nothing is closed yet"
    finally:
        ends.first.execute("ALTER SYSTEM RESET synchronous_standby_names")
        ends.first.execute("SELECT pg_reload_conf()")
    assert ends.run(CI)


def test_a_slot_that_waits_for_a_prepared_transaction_names_it(ends: Ends) -> None:
    ends.first.execute("BEGIN; CREATE TABLE public.held (id int); PREPARE TRANSACTION 'held on first'")
    try:
        with pytest.raises(Busy, match=r"slot .* on second, which waits for prepared transaction 'held on first'"):
            ends.run(CI, seconds=5.0)
        assert states(ends) == ["promoted", "promoted"]
    finally:
        ends.first.execute("ROLLBACK PREPARED 'held on first'")
    assert slots.read(ends.second, ends.slot) is None
    ends.second.execute("ROLLBACK PREPARED 'held on first'")
    assert ends.run(CI)


def test_the_old_database_is_lost_after_the_promotion(prefix: str, tmp_path: Path) -> None:
    with own_server() as server, Ends(server, prefix, tmp_path) as ends:
        ends.run_to("replay", CI, MAIN)
        ends.standby.promote()
        server.abandon()
        with pytest.raises(HeadraceError, match="does not answer"):
            ends.run(CI)
        given = ends.second.execute("SELECT gitlab_schema FROM headrace.schema_ownership WHERE owner = 'second'")
        assert sorted(given) == [(CI,), (MAIN,)]
        follow(ends, "open by hand", ends.second)
        assert database_name(ends.second) == "second"
        assert {name: owner.name for name, owner in owners(ends.second).items()} == {
            CI: "second",
            MAIN: "first",
            SHARED: "second",
        }
        made = slots.read(ends.second, ends.slot)
        assert made is not None
        assert made.confirmed_flush is not None
        server.start()  # it comes back after all
        assert states(ends) == ["named", "open, not released"]
        assert ends.run(CI)
        assert states(ends) == ["named", "open"]


def test_the_old_database_failed_over_to_the_copy(prefix: str, tmp_path: Path) -> None:
    with own_server() as server, Ends(server, prefix, tmp_path) as ends:
        ends.run_to("replay", CI)
        server.abandon()
        ends.standby.promote()
        ends.lead("first", ends.second_dsn)
        assert states(ends)[0] == "the same server"
        with pytest.raises(NotMovable, match="make another standby of it and point the dsn there"):
            ends.run(CI)
        another = ends.standby.standby(f"{ends.name}_another")
        try:
            ends.lead("second", another.dsn(ends.name))
            assert states(ends) == ["a standby", "replayed"]
            assert ends.run(CI)
            with psycopg.connect(another.dsn(ends.name)) as connection:
                assert database_name(connection) == "second"
        finally:
            another.abandon()
