"""All consumers of a run have its direction, nodes and pins."""

from __future__ import annotations

import pytest

from consumers.gitserver.runs import PinOfTwoCopies, RunGoesElsewhere
from consumers.routing.placement import md5_home, rendezvous_home
from infra.settings.model import Settings
from tests.consumers.gitserver.driver import NAMES, World, drive
from tests.consumers.gitservers import NODES, git, is_whole, make_repository

pytestmark = pytest.mark.stack

NAME, OTHER = NAMES[:2]
OLD, NEW = md5_home(NAME, NODES), rendezvous_home(NAME, NODES)
THIRD = next(node for node in NODES if node not in (OLD, NEW))


def pinned(world: World, **pins: str) -> Settings:
    """Return the settings with NAME pinned."""
    gitserver = world.settings.gitserver.model_copy(update={"pins": pins})
    return world.settings.model_copy(update={"gitserver": gitserver})


def failure(world: World, name: str = NAME) -> str | None:
    query = "SELECT failure FROM headrace.rehash_moves WHERE name = %s"
    row = world.connection.execute(query, (name,)).fetchone()
    assert row is not None
    return str(row[0]) if row[0] is not None else None


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {NAME: OLD}, f"run 1 of rehash_moves began with {NAME} not pinned; Start a new run"),
        ({NAME: OLD}, {}, f"run 1 of rehash_moves began with {NAME} pinned to {OLD}; Start a new run"),
        ({NAME: OLD}, {NAME: THIRD}, f"began with {NAME} pinned to {OLD}; "),
        ({NAME: OLD, OTHER: OLD}, {NAME: THIRD}, "pinned to .*, and 1 other pins differ"),
    ],
)
def test_pins_changed_during_a_run_are_refused(
    world: World, before: dict[str, str], now: dict[str, str], said: str
) -> None:
    drive(pinned(world, **before))
    # Another spelling of a name is the same pin.
    drive(pinned(world, **{f"GitHub.com/{name.partition('/')[2]}.git": node for name, node in before.items()}))
    with pytest.raises(RunGoesElsewhere, match=said):
        drive(pinned(world, **now))


def test_new_pin_to_the_repositorys_node_settles_it_there(world: World) -> None:
    world.add([NAME])
    drive(world.settings)
    world.new_run()
    drive(pinned(world, **{NAME: NEW}))
    assert world.states() == {NAME: "settled"}
    assert world.disks.copies(NAME) == [world.disks.new(NAME)]
    world.new_run()
    drive(world.settings)
    assert world.states() == {NAME: "settled"}
    assert world.disks.copies(NAME) == [world.disks.new(NAME)]


def test_repository_where_no_reader_of_its_pin_looks_is_reported_and_kept(world: World) -> None:
    world.add([NAME])
    drive(world.settings)
    world.new_run()
    drive(pinned(world, **{NAME: THIRD}))
    assert world.states() == {NAME: "failed"}
    assert f"it is on {NEW}, where no reader looks, and not on {THIRD}: move its directory there" in str(failure(world))
    assert is_whole(world.disks.new(NAME))

    # The remedy of the error.
    place = world.disks.place(THIRD, NAME)
    place.parent.mkdir(parents=True)
    world.disks.new(NAME).rename(place)
    world.connection.execute("UPDATE headrace.rehash_moves SET state = 'wanted', tries = 0, failure = NULL")
    drive(pinned(world, **{NAME: THIRD}))
    assert world.states() == {NAME: "settled"}
    assert world.disks.copies(NAME) == [place]

    # Without the pin, no reader looks there either.
    world.new_run()
    drive(world.settings)
    assert f"it is on {THIRD}, where no reader looks, and not on {OLD} nor {NEW}" in str(failure(world))
    assert world.disks.copies(NAME) == [place]


def test_missing_repository_with_one_home_is_reported(world: World) -> None:
    name = next(name for n in range(99) if md5_home(name := f"same/{n}", NODES) == rendezvous_home(name, NODES))
    world.note(world.rows([name]))
    drive(world.settings)
    assert world.states() == {name: "failed"}
    assert failure(world, name) == f"the repository is not on {md5_home(name, NODES)}"


def test_new_pin_during_a_move_is_refused_and_the_newer_copy_is_kept(world: World) -> None:
    world.add([NAME])
    drive(world.settings, until=lambda: world.states() == {NAME: "passed"})
    make_repository(other := world.disks.directory / "other", branches=("late",))
    git(world.disks.old(NAME), "fetch", "--quiet", str(other), "refs/heads/late:refs/heads/late")
    world.new_run()
    with pytest.raises(PinOfTwoCopies, match=rf"the pin of {NAME} changed during its move: it is on .* and "):
        drive(pinned(world, **{NAME: NEW}))
    drive(world.settings)
    assert world.states() == {NAME: "settled"}
    assert git(world.disks.new(NAME), "rev-parse", "refs/heads/late")
    world.new_run()
    drive(pinned(world, **{NAME: NEW}))
    assert world.states() == {NAME: "settled"}
