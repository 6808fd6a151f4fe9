"""Every reachable state of a switchover, in a model: no rule can be left out, and every state has a remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from infra.postgres.control import Owner
from producers.switchover import rules
from producers.switchover.endpoints import Changes, Stage, View
from producers.switchover.rules import Step, Way
from producers.switchover.states import EndsState, SchemaState, ends_state, schema_states
from tests.producers.switchover import model_switchover as model
from tests.producers.switchover.model_switchover import BOTH, NAMED, Model, World, owners_of, server

GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "switchover.md"


@pytest.fixture(autouse=True)
def _forget_choices() -> Iterable[None]:
    """Clear caches, so that a rule that a test leaves out is not cached before or after."""
    model.choice.cache_clear()
    yield
    model.choice.cache_clear()


@pytest.fixture(scope="module")
def reachable() -> list[World]:
    """The reachable states if the operator keeps a returned old primary from being used as first."""
    return list(model.explore(Model(ends=[ends for ends in model.ENDS if ends[0] == "first"])))


@pytest.mark.long
def test_each_gitlab_schema_has_at_most_one_owner_with_its_current_rows() -> None:
    reachable = list(model.explore(Model(closes=2)))
    opened = {owner for world in reachable for each in BOTH for owner in owners_of(world, each)}
    assert {"first", "copy", "zombie"} <= opened, "the histories end on every side"
    assert any(world.ghost for world in reachable)
    assert any(owner.epoch > 3 for world in reachable for _, owner in world.first.rows.owners), "also a second time"


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        ("two servers", "is open on"),
        ("every standby", "is open on first and copy"),
        ("claim", "is open on copy and zombie"),
        ("position of the slot", "is open without a slot"),
    ],
)
def test_no_proof_can_be_left_out(rule: str, broken: str) -> None:
    with pytest.raises(AssertionError, match=broken):
        model.explore(Model(frozenset((rule,))))


def opens_at_once(view: View, states: dict[str, SchemaState]) -> Step | None:
    """Leaves out the release."""
    if set(states.values()) <= {SchemaState.OPEN, SchemaState.UNCONFIRMED}:
        return None
    return Step.OPEN if view.slot else Step.SLOT


def opens_what_it_finds(view: View, listed: Collection[str]) -> Changes:
    """Leaves out the correction of rows of schemas that are not named."""
    records = {each: replace(view.old.records[each], stage=Stage.OPENED) for each in view.move.gitlab_schemas}
    return Changes({}, records, view.move.destination)


def takes_back_what_was_released(view: View) -> Changes:
    move, old = view.move, view.old
    closed = [each for each in move.gitlab_schemas if old.owners[each].name == move.destination]
    owners = {each: Owner(move.source, old.owners[each].epoch + 1) for each in closed}
    return Changes(owners, {})


@pytest.mark.parametrize(
    ("name", "without", "broken"),
    [
        ("_after_promotion", opens_at_once, "is open on"),
        ("opening", opens_what_it_finds, "is open on"),
        ("taking_back", takes_back_what_was_released, "is open on"),
    ],
)
def test_no_rule_can_be_left_out(
    name: str, without: Callable[..., object], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, name, without)
    if name == "taking_back":
        monkeypatch.setattr(rules, "refused_abort", lambda _view: None)
    with pytest.raises(AssertionError, match=broken):
        model.explore(Model())


# -- a remedy from each ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_from_every_state_the_remedies_lead_to_one_owner_of_each(reachable: list[World]) -> None:
    for world in reachable:
        for named in NAMED:
            try:
                _follow_remedies(world, named)
            except AssertionError as error:
                error.add_note(f"{named} from {world}")
                raise


def _follow_remedies(world: World, named: tuple[str, ...]) -> None:
    """Follow the command's remedies, with the right ends and standbys that come back, until there are none."""
    world = world._replace(command=None, ghost=None, slot=world.slot if world.slot == "made" else "none")
    given_up: set[str] = set()
    for _ in range(30):
        world = _caught_up(world)
        assert world.copy is not None
        found = model.choice(named, world.first, world.copy, False, world.slot == "made")
        step = rules.next_step(found.seen)
        if step is None:
            break
        if isinstance(step, Step):
            world = _done(world, found.seen, step)
            continue
        for course in step.courses:
            world, named = _do(world, named, course, given_up)
            if not named:
                break
        if not named:
            break
    else:
        raise AssertionError("the remedies go round in circles")
    for each in {*named, *given_up}:
        assert len(owners_of(world, each)) == 1, f"{each} is open on {owners_of(world, each)}"


def _caught_up(world: World) -> World:
    """Let the copy follow; one that cannot, or is gone, is rebuilt, which is always allowed for a standby."""
    copy = world.copy
    if copy is None or (copy.standby and not copy.follows):
        return world.put("copy", server(world.first.rows, True, True))
    return world.put("copy", server(copy.behind[-1], True, True)) if copy.behind else world


def _done(world: World, seen: View, step: Step) -> World:
    copy = world.copy
    assert copy is not None
    if step is Step.PROMOTE:
        return world.put("copy", server(copy.rows))
    if step is Step.SLOT:
        return world._replace(slot="made")
    one = UUID(int=99)
    match step:
        case Step.CLOSE:
            return world.commit("first", world.first.rows.changed(rules.closing(seen, lambda: one)))
        case Step.CLAIM:
            return world.commit("copy", copy.rows.changed(rules.claiming(seen, lambda: one)))
        case Step.RELEASE:
            return world.commit("first", world.first.rows.changed(rules.releasing(seen)))
        case Step.OPEN:
            return world.commit("copy", copy.rows.changed(rules.opening(seen, ())))
    raise AssertionError(f"{step} was waited for")


def _do(
    world: World, named: tuple[str, ...], course: rules.Course, given_up: set[str]
) -> tuple[World, tuple[str, ...]]:
    """Follow one course of a refusal; return the world after it, and the schemas still to be moved to the copy."""
    copy = world.copy
    assert copy is not None
    about = course.gitlab_schemas
    match course.way:
        case Way.NAME_ALL:
            return world, tuple(sorted({*named, *about}))
        case Way.TAKE_BACK:
            seen = model.choice(about, world.first, copy, False, world.slot == "made").seen
            assert rules.refused_abort(seen) is None, f"--abort {about} is refused"
            return world.commit("first", world.first.rows.changed(rules.taking_back(seen))), named
        case Way.STANDBY_AGAIN:
            for each in BOTH:
                assert owners_of(world, each) != ["copy"], f"the only current rows of {each} are discarded"
            return world.put("copy", server(_caught_up(world).first.rows, True, True)), named
        case Way.RUN:
            _follow_remedies(world, about)
            return _run_to_the_end(world, about), named
        case Way.CORRECT_ENDS if world.zombie is not None:
            return world.put("copy", world.zombie).put("zombie", None), named
        case Way.OTHER_NAME:
            given_up |= set(about)
            return world, tuple(each for each in named if each not in about)
    raise AssertionError(f"{course.way} with the true ends")


def _run_to_the_end(world: World, named: tuple[str, ...]) -> World:
    while True:
        assert world.copy is not None
        seen = model.choice(named, world.first, world.copy, False, world.slot == "made").seen
        step = rules.next_step(seen)
        if step is None:
            return world
        assert isinstance(step, Step)
        world = _done(world, seen, step)


# -- what --status shows ---------------------------------------------------------------------------------------------


def test_every_state_has_its_paragraph_in_the_guide() -> None:
    headings = re.findall(r"^#### `(.+)`$", GUIDE.read_text(), re.MULTILINE)
    shown = [each.value for kind in (EndsState, SchemaState) for each in kind]
    assert sorted(headings) == sorted(shown)


def test_states_that_are_reached_are_those_that_the_guide_calls_ordinary(reachable: list[World]) -> None:
    """Other states need edited tables, or a server that came back after it was replaced."""
    ordinary = re.search(r"<!-- reached -->(.*)<!-- end -->", GUIDE.read_text(), re.DOTALL)
    assert ordinary is not None
    named = set(re.findall(r"^#### `(.+)`$", ordinary[1], re.MULTILINE))
    found: set[str] = set()
    for world in reachable:
        if world.copy is not None:
            seen = model.choice(BOTH, world.first, world.copy, False, world.slot == "made").seen
            found.add(ends_state(seen).value)
            found |= {state.value for state in schema_states(seen, BOTH).values()}
    assert found <= named, found - named
