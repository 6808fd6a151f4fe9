"""What has to be so before repositories are moved."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumers.moving.readiness import JanitorNotConfirmed
from consumers.placement import md5_home
from infra.settings import Settings
from tests.consumers.gitservers import NODES, Disks, is_whole
from tests.consumers.moving.driver import NAMES, World, drive

pytestmark = pytest.mark.stack


def with_gitserver(world: World, **changes: object) -> Settings:
    gitserver = world.settings.gitserver.model_copy(update=changes)
    return world.settings.model_copy(update={"gitserver": gitserver})


def janitor(disks: Disks) -> Iterator[Path]:
    """Delete as gitserver's own does at its defaults; yield what was deleted."""
    for node in NODES:
        root = disks.path(node)
        for place in root.glob("github.com/*/*/.git"):
            if md5_home(str(place.parent.relative_to(root)), NODES) != node:
                shutil.rmtree(place)
                yield place


def test_nothing_moves_until_the_janitors_deletion_is_said_to_be_off_or_to_follow_the_cursor(world: World) -> None:
    name = NAMES[0]
    world.add([name])
    with pytest.raises(JanitorNotConfirmed, match=r"every moved repository.*switch that off on every node"):
        drive(with_gitserver(world, wrong_shard_deletion=None))
    assert list(janitor(world.disks)) == []
    assert is_whole(world.disks.old(name))

    drive(with_gitserver(world, wrong_shard_deletion="follows_cursor"))
    # Why it is asked for: the only copy is on what md5 takes for the wrong node.
    assert list(janitor(world.disks)) == [world.disks.new(name)]
