"""Consumers that die or freeze between a rename and its commit, as docs/explanation/models/routing.pml found them."""

from __future__ import annotations

import os
import signal

import pytest

from consumers.repositories.storage import Root
from consumers.routing.placement import md5_home
from consumers.testing.waiting import PATIENCE
from tests.consumers.gitserver.driver import NAMES, World, drive, start
from tests.consumers.gitservers import NODES, git, is_whole, push

pytestmark = pytest.mark.stack

NAME = NAMES[0]


def end_sessions(world: World) -> None:
    """End every session except the test's, as a failover does."""
    world.connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


@pytest.mark.long
def test_push_in_progress_keeps_old_copy_whose_consumer_was_killed(world: World) -> None:
    world.add([NAME])
    drive(world.settings, until=lambda: world.states()[NAME] == "passed")
    dying = start(world.config, "consumers.repositories.storage:Root.take_away:after")
    dying.communicate(timeout=PATIENCE)
    assert dying.returncode == -signal.SIGKILL
    leaving = Root(world.disks.path(md5_home(NAME, NODES))).leaving(NAME)
    assert (world.states(), leaving.exists()) == ({NAME: "passed"}, True)
    # Of a push that opened the repository before it was renamed.
    lock = leaving / "refs/heads/late.lock"
    lock.touch()
    turns = iter(range(20))
    drive(world.settings, until=lambda: next(turns, None) is None)
    assert leaving.exists()
    lock.unlink()
    pushed = push(leaving, "late", "late")
    drive(world.settings)
    assert world.states() == {NAME: "settled"}
    assert world.disks.copies(NAME) == [world.disks.new(NAME)]
    assert git(world.disks.new(NAME), "rev-parse", "late") == pushed


def test_consumer_frozen_before_its_commit_leaves_copy_that_another_consumer_uses(
    world: World,
) -> None:
    world.add([NAME])
    zombie = start(world.config, "consumers.repositories.storage:Root.install:after", stop=True)
    try:
        os.waitid(os.P_PID, zombie.pid, os.WSTOPPED | os.WNOWAIT)
        end_sessions(world)
        drive(world.settings)
        assert world.disks.copies(NAME) == [world.disks.new(NAME)]
        pushed = push(world.disks.new(NAME), "later", "later")
    finally:
        zombie.send_signal(signal.SIGCONT)
        _, problems = zombie.communicate(timeout=PATIENCE)
    assert zombie.returncode == 1, problems.decode()
    assert world.disks.copies(NAME) == [world.disks.new(NAME)]
    assert is_whole(world.disks.new(NAME))
    assert git(world.disks.new(NAME), "rev-parse", "later") == pushed
