"""The rules of a switchover for rows that the model does not reach, and the rows that they write."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from infra.postgres.control import Owner
from producers.switchover import rules
from producers.switchover.endpoints import Move, Record, Side, Stage, View
from producers.switchover.rules import Refusal, Step, Way
from producers.switchover.states import EndsState, SchemaState, ends_state, schema_state
from schemas.gitlab_schemas import PER_DATABASE

MAIN, CI, SHARED = "gitlab_main", "gitlab_ci", "gitlab_shared"
ONE, OTHER = UUID(int=1), UUID(int=2)
CLOSED = Record(ONE, "first", "second", 2, Stage.CLOSED)
HERE, GIVEN = Owner("first", 1), Owner("second", 2)


def side(owner: Owner, record: Record | None = None, *, name: str = "first", standby: bool = False) -> Side:
    records = {} if record is None else {MAIN: record}
    return Side(name, standby, {MAIN: owner, CI: HERE, SHARED: HERE}, "1", records)


def view(old: Side, new: Side, *named: str, slot: bool = True) -> View:
    return View(Move(named or (MAIN,), "first", "second"), old, new, same_server=False, slot=slot)


def test_copy_with_a_different_change_of_the_same_epoch_was_not_given_the_schema() -> None:
    """As after first failed over to a standby that lacked the close, and closed again for another copy."""
    lost = side(GIVEN, replace(CLOSED, id=OTHER))
    assert schema_state(view(side(GIVEN, CLOSED), lost), MAIN) is SchemaState.MISSED
    assert schema_state(view(side(GIVEN, CLOSED), side(GIVEN, CLOSED)), MAIN) is SchemaState.PROMOTED


def test_record_of_another_epoch_belongs_to_another_change() -> None:
    by_hand = side(Owner("second", 3), CLOSED)
    assert schema_state(view(by_hand, side(GIVEN, CLOSED)), MAIN) is SchemaState.UNRECORDED


def test_slot_precedes_claim_and_release_precedes_opening() -> None:
    old, new = side(GIVEN, CLOSED), side(GIVEN, CLOSED)
    assert rules.next_step(view(old, new, slot=False)) is Step.SLOT
    assert rules.next_step(view(old, new)) is Step.CLAIM
    new = rules.apply(new, rules.claiming(view(old, new), lambda: OTHER))
    assert rules.next_step(view(old, new)) is Step.RELEASE
    old = rules.apply(old, rules.releasing(view(old, new)))
    assert rules.next_step(view(old, new)) is Step.OPEN
    new = rules.apply(new, rules.opening(view(old, new), (MAIN, SHARED)))
    assert rules.next_step(view(old, new)) is None
    assert (new.name, new.owners) == ("second", {MAIN: GIVEN, CI: HERE, SHARED: Owner("second", 2)})


@pytest.mark.parametrize("label", sorted(PER_DATABASE))
def test_new_owner_gets_its_own_of_what_every_database_has(label: str) -> None:
    old, new = (Side("first", False, {MAIN: GIVEN, label: HERE}, "1", {MAIN: CLOSED}) for _ in range(2))
    assert rules.opening(view(old, new), (MAIN, label)).owners == {MAIN: GIVEN, label: Owner("second", 2)}
    assert rules.opening(view(old, new), (MAIN,)).owners == {MAIN: GIVEN}, "unless its settings lack it"
    assert list(rules.owned_by_copy(view(old, replace(new, name="second", owners={label: Owner("second", 2)})))) == []


def test_old_primary_with_the_release_is_not_the_copy_that_claimed_it() -> None:
    released = replace(CLOSED, stage=Stage.RELEASED, claim=OTHER)
    assert schema_state(view(side(GIVEN, released), side(GIVEN, released)), MAIN) is SchemaState.STALE


def test_former_owner_is_not_the_server_that_was_given_the_schema_back() -> None:
    """Such as a copy of the first owner from before all moves, to which a dsn leads by mistake."""
    move = Move((MAIN,), "second", "first")
    back = Record(ONE, "second", "first", 3, Stage.RELEASED, claim=OTHER)
    old = side(Owner("first", 3), back, name="second")
    there = side(Owner("first", 3), replace(back, stage=Stage.OPENED))
    for server, state in ((there, SchemaState.OPEN), (side(Owner("first", 1)), SchemaState.STALE)):
        assert schema_state(View(move, old, server, same_server=False, slot=True), MAIN) is state


def test_move_back_that_would_open_stale_rows_is_refused() -> None:
    """second moves gitlab_main back to a standby of its own, called first; gitlab_ci has been first's all the time."""
    opened = replace(CLOSED, stage=Stage.OPENED, claim=OTHER)
    owners = {MAIN: GIVEN, CI: HERE}
    old = Side("second", False, owners, "1", {MAIN: opened})
    seen = View(Move((MAIN,), "second", "first"), old, replace(old, standby=True), same_server=False, slot=True)
    refused = rules.next_step(seen)
    assert isinstance(refused, Refusal)
    assert "gitlab_ci belongs to first by the rows of second" in refused.problem
    assert [course.way for course in refused.courses] == [Way.OTHER_NAME]


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"same_server": True}, EndsState.SAME_SERVER),
        ({"old": side(HERE, standby=True)}, EndsState.SOURCE_IS_STANDBY),
        ({"old": side(HERE, name="third")}, EndsState.SOURCE_MISNAMED),
        ({"new": side(HERE, name="third")}, EndsState.DESTINATION_MISNAMED),
        ({"new": side(HERE, name="second", standby=True)}, EndsState.DESTINATION_IS_STANDBY),
        ({"new": replace(side(HERE), system="2")}, EndsState.OTHER_CLUSTER),
    ],
)
def test_wrong_ends_are_refused_by_run_and_abort(change: dict[str, object], state: EndsState) -> None:
    seen = replace(view(side(HERE), side(HERE, standby=True)), **change)  # type: ignore[arg-type]
    assert ends_state(seen) is state
    for refused in (rules.next_step(seen), rules.refused_abort(seen)):
        assert isinstance(refused, Refusal)
        assert refused.courses[0].way is Way.CORRECT_ENDS


@pytest.mark.parametrize(
    ("owner", "state"),
    [(Owner("third", 2), SchemaState.ELSEWHERE), (None, SchemaState.UNCLAIMED)],
)
def test_schema_that_the_source_does_not_own_is_refused_by_run_and_abort(
    owner: Owner | None, state: SchemaState
) -> None:
    old = side(HERE)
    old = replace(old, owners={name: at for name, at in {**old.owners, MAIN: owner}.items() if at is not None})
    seen = view(old, side(HERE, standby=True))
    assert schema_state(seen, MAIN) is state
    for refused in (rules.next_step(seen), rules.refused_abort(seen)):
        assert isinstance(refused, Refusal)
        assert MAIN in refused.problem
