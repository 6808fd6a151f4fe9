"""One copy is authoritative at every moment; the other one is handled in any state and after any failure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from consumers.contract.external import Pace
from consumers.gitserver import moves
from consumers.repositories import carry_over, lenders
from consumers.repositories.git import GitFailed, Steps
from consumers.repositories.storage import OWN, Copy, Root
from consumers.routing.placement import md5_home
from tests.consumers.gitserver.driver import NAMES, World, drive
from tests.consumers.gitserver.kinds.registry import inventory, write
from tests.consumers.gitserver.kinds.whole import commit
from tests.consumers.gitservers import NODES, git, is_whole, make_repository, push, refs

pytestmark = pytest.mark.stack

NAME = NAMES[0]


def said(world: World) -> tuple[str, str]:
    """Return the failure and the remarks recorded for the only move."""
    row = world.connection.execute("SELECT coalesce(failure, ''), coalesce(remarks, '') FROM headrace.rehash_moves")
    found: tuple[str, str] = row.fetchone()  # type: ignore[assignment]
    return found


def set_aside(world: World) -> list[Path]:
    return [path for node in NODES for path in (world.disks.path(node) / OWN / "set-aside").glob("*")]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes every carry-over fail once this list has a word, with the first one."""
    words: list[str] = []
    original = carry_over.carry

    def carry(source: Copy, target: Copy, **named: Any) -> Steps[None]:
        if words:
            yield Pace.BUSY
            raise GitFailed(words[0])
        yield from original(source, target, **named)

    for name in ("carry", "keep_up"):
        monkeypatch.setattr(moves, name, carry)
    return words


def test_move_that_fails_before_the_cursor_passes_is_undone(world: World, failing: list[str]) -> None:
    world.add([NAME])
    before = inventory(world.disks.old(NAME))
    failing.append("broken")
    drive(world.settings)
    assert world.states() == {NAME: "failed"}
    assert said(world) == ("broken", "")
    assert world.disks.copies(NAME) == [world.disks.old(NAME)]
    assert inventory(world.disks.old(NAME)) == before
    assert (world.disks.leftovers(), set_aside(world)) == ([], [])


def test_move_that_fails_after_the_cursor_passed_sets_the_old_copy_aside(world: World, failing: list[str]) -> None:
    world.add([NAME])
    drive(world.settings, until=lambda: world.states()[NAME] == "passed")
    late = push(world.disks.old(NAME), "late", "late")
    failing.append("broken")
    drive(world.settings)
    assert world.states() == {NAME: "settled"}
    assert world.disks.copies(NAME) == [world.disks.new(NAME)]
    (aside,) = set_aside(world)
    assert git(aside, "rev-parse", "late") == late
    assert said(world) == ("", f"its old copy, which could not be carried over (broken), was set aside as {aside}")


def test_late_detached_head_with_its_own_commit_is_moved(world: World) -> None:
    world.add([NAME])
    old, new = world.disks.old(NAME), world.disks.new(NAME)
    drive(world.settings, until=lambda: world.states()[NAME] == "passed")
    only = commit(old, "only HEAD has it")
    git(old, "update-ref", "--no-deref", "HEAD", only)
    drive(world.settings)
    assert world.states() == {NAME: "settled"}
    assert (new / "HEAD").read_text() == f"{only}\n"
    assert world.disks.copies(NAME) == [new]


def test_cursor_waits_for_copy_that_is_not_up_to_date(world: World, failing: list[str]) -> None:
    world.add([NAME])
    drive(world.settings, until=lambda: world.states()[NAME] == "copied")
    failing.append("broken")
    tries = "SELECT tries FROM headrace.rehash_moves WHERE state = 'copied'"
    patient = world.with_options(retry_seconds=1000.0)
    drive(patient, until=lambda: world.connection.execute(tries).fetchone() == (1,))
    failing.clear()
    rounds = iter(range(50))
    drive(patient, until=lambda: next(rounds, None) is None)
    assert world.states() == {NAME: "copied"}
    world.connection.execute("UPDATE headrace.rehash_moves SET not_before = '-infinity'")
    drive(world.settings)
    assert world.states() == {NAME: "settled"}


def test_repository_created_at_the_old_home_is_merged_into_the_authoritative_copy(world: World) -> None:
    world.add([NAME])
    drive(world.settings)
    old, new = world.disks.old(NAME), world.disks.new(NAME)
    ours = push(new, "main", "since")
    make_repository(old)
    theirs, stray = push(old, "main", "of the stray"), push(old, "stray", "stray")
    world.connection.execute("UPDATE gitserver_repos SET shard_id = %s", (md5_home(NAME, NODES),))
    world.note([key for (key,) in world.connection.execute("SELECT id FROM repo")])
    drive(world.settings)
    assert world.disks.copies(NAME) == [new]
    assert refs(new)["refs/heads/main"] == ours
    assert refs(new)["refs/heads/stray"] == stray
    assert theirs in refs(new).values()
    assert is_whole(new)


def test_rubbish_that_replaced_a_passed_copy_never_costs_the_complete_one(world: World) -> None:
    world.add([NAME])
    drive(world.settings)
    old, new = world.disks.old(NAME), world.disks.new(NAME)
    shutil.copytree(new, old)
    shutil.rmtree(new / "objects")
    (new / "objects").mkdir()
    before = inventory(old)
    world.connection.execute("UPDATE gitserver_repos SET shard_id = %s", (md5_home(NAME, NODES),))
    world.note([key for (key,) in world.connection.execute("SELECT id FROM repo")])
    drive(world.settings)
    assert world.disks.copies(NAME) == [new]
    assert inventory(new) == before
    assert len(set_aside(world)) == 1


def test_new_copy_must_be_complete_before_the_old_one_is_removed(world: World) -> None:
    world.add([NAME])
    old, new = world.disks.old(NAME), world.disks.new(NAME)
    drive(world.settings, until=lambda: world.states()[NAME] == "passed")
    push(new, "main", "only at the new home")
    blob = git(new, "rev-parse", "main:file")
    (new / "objects" / blob[:2] / blob[2:]).unlink()
    before = inventory(old)
    drive(world.settings)
    (aside,) = set_aside(world)
    assert inventory(aside) == before
    assert "it is not complete: missing blob" in said(world)[1]


def test_copy_whose_objects_others_use_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lenders, "_SECONDS", 0.0)
    monkeypatch.setattr(lenders, "_SHARE", 0.0)
    monkeypatch.setattr(moves, "_BORROWED_SECONDS", 0.01)
    world.add([NAME])
    old = world.disks.old(NAME)
    drive(world.settings, until=lambda: world.states()[NAME] == "passed")
    borrower = old.parent.with_name("fork") / ".git"
    make_repository(borrower)
    alternates = write(borrower / "objects/info/alternates", os.path.relpath(old / "objects", borrower / "objects"))
    drive(world.settings, until=lambda: "uses its objects" in said(world)[1])
    assert old.exists()
    assert world.states() == {NAME: "passed"}
    alternates.unlink()
    drive(world.settings)
    assert world.disks.copies(NAME) == [world.disks.new(NAME)]


def test_directory_is_set_aside_once_even_if_consumers_are_killed(world: World) -> None:
    world.add([NAME])
    new = world.disks.new(NAME)
    write(new / "rubbish")
    original = moves.Moves._set_aside

    class Killed(Exception):
        pass

    def kill(self: moves.Moves, *arguments: Any) -> None:
        def dies(*_: Any) -> None:
            raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Root, "take_away", dies)
            original(self, *arguments)

    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(moves.Moves, "_set_aside", kill)
            with pytest.raises(Killed):
                drive(world.settings)
    drive(world.settings)
    (aside,) = set_aside(world)
    assert said(world)[1] == f"the directory at its new home was set aside as {aside}"
    assert (aside / "rubbish").exists()
