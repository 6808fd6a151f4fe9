"""The mover with real disks and a real database: killed at every step, reversed, and with concurrent writes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from consumers.gitserver.moves import Moves
from consumers.gitserver.states import Move
from consumers.migrations.rehash_moves import RehashMoves
from consumers.repositories import clone
from consumers.repositories.refs import KEPT
from consumers.repositories.storage import Copy, Root
from consumers.routing.lookup import Database as Cursors
from consumers.routing.lookup import Reading, homes
from consumers.routing.placement import Placement, md5_home, rendezvous_home
from consumers.runtime.external_driver import Working
from consumers.testing.waiting import PATIENCE
from schemas.errors import SettingsError
from tests.consumers.gitserver.driver import NAMES, World, drive, moving, start
from tests.consumers.gitservers import NODES, is_whole, make_repository, push, refs, shards

pytestmark = pytest.mark.stack

POINTS = (
    # A clone that is not visible yet: it is begun again.
    ("consumers.repositories.clone:write_base:before", 2),
    ("consumers.repositories.storage:Root.install:before", 2),
    # It is in its place, but not recorded.
    ("consumers.repositories.storage:Root.install:after", 2),
    ("consumers.gitserver.states:advance:after", 3),
    # The cursor moved, and its transaction was not committed; then committed, but the time was not recorded.
    ("consumers.gitserver.cursors:move:after", 1),
    ("consumers.gitserver.cursors:mark_passed:before", 1),
    ("consumers.gitserver.cursors:mark_passed:after", 1),
    # The old copy is out of reach, but that is not recorded.
    ("consumers.repositories.storage:Root.take_away:before", 1),
    ("consumers.repositories.storage:Root.take_away:after", 1),
    # It is being deleted.
    ("consumers.gitserver.moves:_put_by:before", 1),
    ("consumers.gitserver.moves:_put_by:after", 1),
    ("consumers.gitserver.moves:remove:before", 1),
    ("consumers.gitserver.moves:finish:before", 1),
    ("consumers.gitserver.moves:finish:after", 1),
)


def found_by_readers(world: World, name: str) -> Path:
    """Return where a reader with current cursors finds a repository: at the first home, or else the second."""
    cursors = Cursors(world.settings.database("main").dsn.get_secret_value())
    try:
        reading = Reading(0.0, cursors.ask())
    finally:
        cursors.close()
    placement = Placement(NODES)
    return next(place for node in homes(placement, name, reading) if (place := world.disks.place(node, name)).exists())


@pytest.mark.long
@pytest.mark.parametrize(("point", "number"), POINTS, ids=[point.split(".")[-1] for point, _ in POINTS])
def test_kill_at_any_step_neither_loses_nor_duplicates_a_repository(world: World, point: str, number: int) -> None:
    names = NAMES[:4]
    world.add(names)
    before = {name: refs(world.disks.old(name)) for name in names}

    victim = start(world.config, point, number)
    _, problems = victim.communicate(timeout=PATIENCE)
    assert victim.returncode == -9, problems.decode()
    for name in names:
        assert refs(found_by_readers(world, name)) == before[name], "half visible, or lost"

    drive(world.settings)

    assert set(world.states().values()) == {"settled"}
    for name in names:
        assert world.disks.copies(name) == [world.disks.new(name)]
        assert refs(world.disks.new(name)) == before[name]
        assert is_whole(world.disks.new(name))
    assert world.disks.leftovers() == []
    assert shards(world.connection) == {name: rendezvous_home(name, NODES) for name in names}


def test_push_to_the_old_home_during_the_move_is_carried_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = NAMES[:1]
    world.add([name])
    old, new = world.disks.old(name), world.disks.new(name)
    pushed: dict[str, str] = {}

    def at(state: str) -> bool:
        """Push to a separate branch as soon as the move has reached the state."""
        if state not in pushed and world.states()[name] == state and old.exists():
            pushed[state] = push(old, f"pushed-while-{state}", state)
        return False

    drive(world.settings, until=lambda: at("wanted") or at("copied") or at("passed"))

    assert set(pushed) >= {"wanted", "passed"}
    for state, commit in pushed.items():
        assert refs(new)[f"refs/heads/pushed-while-{state}"] == commit
    assert world.disks.copies(name) == [new]


def test_push_by_a_reader_with_old_cursors_is_carried_over(world: World) -> None:
    (name,) = NAMES[:1]
    world.add([name])
    old, new = world.disks.old(name), world.disks.new(name)
    gitserver = world.settings.gitserver.model_copy(update={"grace_seconds": 1000.0})
    slow = world.settings.model_copy(update={"gitserver": gitserver})
    drive(slow, until=lambda: world.states()[name] == "passed")
    commit = push(old, "late", "late")

    drive(slow, until=lambda: "refs/heads/late" in refs(new))

    assert refs(new)["refs/heads/late"] == commit
    assert world.states() == {name: "passed"}
    assert old.exists()


def test_push_begun_at_the_old_home_is_carried_over(world: World) -> None:
    (name,) = NAMES[:1]
    world.add([name])
    source, _ = world.disks.old(name), world.disks.new(name)
    hash_of_name = None

    def leaving() -> Path | None:
        root = world.disks.path(md5_home(name, NODES))
        return next(iter((root / ".headrace" / "leaving").glob("*")), None)

    def late() -> bool:
        """Push within the directory that is out of reach, as a process does that already runs in it."""
        nonlocal hash_of_name
        if hash_of_name is None and world.states()[name] == "leaving" and (place := leaving()) is not None:
            hash_of_name = push(place, "late", "late")
        return False

    drive(world.settings, until=late)

    assert hash_of_name is not None
    assert refs(world.disks.new(name))["refs/heads/late"] == hash_of_name
    assert not source.exists()


def test_push_in_progress_keeps_the_old_copy(world: World) -> None:
    (name,) = NAMES[:1]
    world.add([name])
    old = world.disks.old(name)
    drive(world.settings, until=lambda: world.states()[name] == "passed")
    quarantine = old / "objects" / "tmp_objdir-incoming-abc"
    quarantine.mkdir()
    postponed = "SELECT not_before > now() + interval '0.5 s' AND state = 'passed' FROM headrace.rehash_moves"

    drive(world.settings, until=lambda: world.connection.execute(postponed).fetchone() == (True,))

    assert old.exists()
    quarantine.rmdir()
    drive(world.settings)
    assert world.disks.copies(name) == [world.disks.new(name)]


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs Linux' /proc")
def test_read_in_progress_keeps_the_old_copy(world: World) -> None:
    (name,) = NAMES[:1]
    world.add([name])
    old = world.disks.old(name)
    drive(world.settings, until=lambda: world.states()[name] == "passed")
    reader = subprocess.Popen(["git", "cat-file", "--batch"], cwd=old, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write(b"HEAD\n")
        reader.stdin.flush()
        assert b"commit" in reader.stdout.readline()
        postponed = "SELECT not_before > now() + interval '0.5 s' AND state = 'passed' FROM headrace.rehash_moves"
        drive(world.settings, until=lambda: world.connection.execute(postponed).fetchone() == (True,))
        assert old.exists()
    finally:
        reader.communicate()
    drive(world.settings)
    assert world.disks.copies(name) == [world.disks.new(name)]


def test_both_values_of_a_ref_changed_at_both_copies_are_kept(world: World) -> None:
    (name,) = NAMES[:1]
    world.add([name])
    old, new = world.disks.old(name), world.disks.new(name)
    drive(world.settings, until=lambda: world.states()[name] == "passed")
    theirs, ours = push(old, "main", "at the old home"), push(new, "main", "at the new home")

    drive(world.settings)

    assert refs(new)["refs/heads/main"] == ours
    assert refs(new)[f"{KEPT}{theirs}/heads/main"] == theirs
    row = world.connection.execute("SELECT state, remarks FROM headrace.rehash_moves").fetchone()
    assert row is not None
    assert row[0] == "settled"
    assert "both copies were written to" in row[1]


@pytest.mark.long
def test_reversal_half_way_moves_all_repositories_back(world: World) -> None:
    names = NAMES[:8]
    world.add(names)
    before = {name: refs(world.disks.old(name)) for name in names}
    few = world.with_options(moves_at_once=1)
    drive(few, until=lambda: list(world.states().values()).count("settled") >= 2)
    pushed = {name: push(found_by_readers(world, name), "later", name) for name in names}

    world.new_run()
    drive(world.with_options(direction="reverse"))

    for name in names:
        assert world.disks.copies(name) == [world.disks.old(name)]
        assert refs(world.disks.old(name)) == {**before[name], "refs/heads/later": pushed[name]}
    assert world.disks.leftovers() == []
    assert shards(world.connection) == {name: md5_home(name, NODES) for name in names}
    cursors = world.connection.execute("SELECT DISTINCT upto, finished FROM headrace.rehash_cursors").fetchall()
    assert cursors == [(None, False)]

    world.new_run()
    drive(world.settings)
    for name in names:
        assert world.disks.copies(name) == [world.disks.new(name)]
        assert refs(world.disks.new(name)) == {**before[name], "refs/heads/later": pushed[name]}


def test_leftovers_without_an_open_move_are_removed(world: World) -> None:
    moved, forgotten = NAMES[:2]
    world.add([moved])
    drive(world.settings)
    root = Root(world.disks.path(rendezvous_home(moved, NODES)))
    # As left by a consumer that was stopped for long at the one unguarded instant, and then died.
    root.take_away(root.place(moved), root.leaving(moved))
    make_repository(root.coming(forgotten))

    drive(world.settings)

    assert world.disks.copies(moved) == [world.disks.new(moved)]
    assert is_whole(world.disks.new(moved))
    assert world.disks.leftovers() == []


def test_consumer_that_was_frozen_too_long_moves_no_repository(world: World) -> None:
    (name,) = NAMES[:1]
    world.add([name])
    drive(world.settings, until=lambda: world.states()[name] == "passed")
    zombie = start(world.config, "consumers.repositories.storage:Root.take_away:before", stop=True)
    try:
        os.waitid(os.P_PID, zombie.pid, os.WSTOPPED | os.WNOWAIT)
        world.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        drive(world.settings)
        world.new_run()
        drive(world.with_options(direction="reverse"))
        assert world.disks.copies(name) == [world.disks.old(name)]
    finally:
        zombie.send_signal(signal.SIGCONT)
        _, problems = zombie.communicate(timeout=PATIENCE)

    assert zombie.returncode == 1, problems.decode()
    assert world.disks.copies(name) == [world.disks.old(name)]
    assert is_whole(world.disks.old(name))
    assert world.disks.leftovers() == []


def test_direction_belongs_to_the_run_not_to_a_consumer(world: World) -> None:
    world.add(NAMES[:1])
    drive(world.settings)
    with pytest.raises(
        SettingsError, match=r"run 1 of rehash_moves has direction forward, not reverse; Start a new run"
    ):
        drive(world.with_options(direction="reverse"))
    other = world.settings.gitserver.model_copy(update={"nodes": NODES[::-1]})
    with pytest.raises(SettingsError, match="has other nodes, or another order of them"):
        drive(world.settings.model_copy(update={"gitserver": other}))


def test_repository_created_at_the_old_home_after_the_cursor_passed_is_moved(world: World) -> None:
    world.add(NAMES[:2])
    drive(world.settings)
    late = NAMES[2]
    world.add([late])
    drive(world.settings)
    assert world.disks.copies(late) == [world.disks.new(late)]


def test_repository_created_at_the_new_home_stays_there(world: World) -> None:
    world.add(NAMES[:1], new=True)
    place = world.disks.new(NAMES[0])
    inode = place.stat().st_ino
    drive(world.settings)
    assert world.disks.copies(NAMES[0]) == [place]
    assert place.stat().st_ino == inode


@pytest.fixture
def clones(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sources of all clones, in order."""
    made: list[Path] = []
    original = clone.copy

    def copy(source: Copy, *arguments: object, **named: object) -> object:
        made.append(source.path)
        return original(source, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(clone, "copy", copy)
    return made


def test_pinned_repositories_and_those_with_one_home_are_not_copied(world: World, clones: list[Path]) -> None:
    same = next(name for n in range(99) if md5_home(name := f"same/{n}", NODES) == rendezvous_home(name, NODES))
    pinned = NAMES[0]
    pins = {pinned: md5_home(pinned, NODES)}
    world.add([same, pinned])
    gitserver = world.settings.gitserver.model_copy(update={"pins": pins})
    drive(world.settings.model_copy(update={"gitserver": gitserver}))
    assert clones == []
    assert set(world.states().values()) == {"settled"}
    assert world.disks.old(pinned).exists()


def test_names_that_are_invalid_paths_fail_without_side_effects(world: World) -> None:
    outside = world.disks.directory / "outside"
    make_repository(outside / ".git")
    link = NAMES[0]
    world.disks.old(link).parent.parent.mkdir(parents=True)
    world.disks.old(link).parent.symlink_to(outside)
    bad = (f"host/{number}/.git/x" for number in range(99)), (f".headrace/{number}" for number in range(99))
    long = (f"host/{'x' * 300}{number}" for number in range(99))
    world.note(world.rows([link, *(moving(names)[0] for names in (*bad, long))]))

    drive(world.settings)

    assert set(world.states().values()) == {"failed"}
    reasons = world.connection.execute("SELECT DISTINCT failure FROM headrace.rehash_moves ORDER BY 1").fetchall()
    assert [reason for (reason,) in reasons] == [
        "a part of its name is too long for a directory",
        "its name is in the directory .headrace, which is reserved for headrace",
        "its name is not a valid path",
        "its path has a symbolic link",
    ]
    assert is_whole(outside / ".git")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which moves began."""
    times: list[float] = []
    original = Moves.bring

    def bring(moves: Moves, move: Move) -> Any:
        times.append(time.monotonic())
        return original(moves, move)

    monkeypatch.setattr(Moves, "bring", bring)
    return times


@pytest.mark.long
def test_moves_obey_max_rate_after_a_restart(world: World, begun: list[float]) -> None:
    world.add(NAMES[:4])
    settings = world.with_options(max_rate=0.4)
    working = Working(settings, RehashMoves.configure(settings.migration("rehash_moves")), "main")
    deadline, stopped = time.monotonic() + PATIENCE, False
    while set(world.states().values()) != {"settled"}:
        working.step(1)
        if len(begun) == 2 and not stopped:
            working.stop()
            stopped = True
        assert time.monotonic() < deadline
    working.stop()
    assert stopped
    assert len(begun) >= 4
    # One in two and a half seconds, and a tenth of a second may be made up for.
    assert all(later - earlier >= 2.3 for earlier, later in pairwise(begun)), begun


def test_moves_pause_for_pause_ms(world: World, begun: list[float]) -> None:
    world.add(NAMES[:3])
    drive(world.with_options(pause_ms=2_500))
    assert set(world.states().values()) == {"settled"}
    assert len(begun) == 3
    assert all(later - earlier >= 2.5 for earlier, later in pairwise(begun)), begun
