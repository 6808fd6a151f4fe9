"""Consumers of `rehash_moves` that are killed repeatedly until everything is moved in one direction."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any, Final

from consumers.gitserver import worker
from consumers.routing.placement import PARTITIONS
from tests.consumers.gitserver.driver import World, drive, end_at, with_direction
from tests.consumers.gitserver.faults import FAULTS

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.consumers.gitserver.driver", "tests.chaos.movers"])
_MEMBERS: Final = 2
_PATIENCE_SECONDS: Final = 900.0
POINTS: Final = tuple(
    f"consumers.{point}:{when}"
    for point in (
        "repositories.clone:write_base",
        "repositories.carry_over:bring_objects",
        "repositories.carry_over:set_refs",
        "repositories.carry_over:write_base",
        "repositories.objects:_put",
        "repositories.storage:Root.install",
        "repositories.storage:Root.take_away",
        "gitserver.moves:prove",
        "gitserver.moves:carry",
        "gitserver.moves:keep_up",
        "gitserver.moves:remove",
        "gitserver.moves:finish",
        "gitserver.moves:_put_by",
        "gitserver.states:advance",
        "gitserver.states:remark",
        "gitserver.cursors:move",
        "gitserver.cursors:mark_passed",
    )
    for when in ("before", "after")
)
"""Steps at which a consumer is killed; see tests/consumers/gitserver/driver.py."""


def move_under_kills(
    world: World,
    direction: str,
    chance: random.Random,
    *,
    most: int = 60,
    plant: str = "",
    meanwhile: Callable[[], None] = lambda: None,
) -> int:
    """Move everything in one direction; return how many consumers were killed with work left to do, at most `most`.

    A consumer is killed at a random moment, or at a random step of its work. `plant` is a fault that the consumers have
    (tests/consumers/gitserver/faults.py). `meanwhile` is called continuously, and stops the moves by raising. Raises
    AssertionError when the moves make no progress, or a consumer ended by an error.
    """
    members: list[Any] = []
    killed = 0
    deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        while not _is_done(world, direction):
            assert time.monotonic() < deadline, f"the moves make no progress: {world.states()}"
            meanwhile()
            for each in [each for each in members if not each.is_alive()]:
                assert each.exitcode in (0, -SIGKILL), _said(world.config)
                killed += each.exitcode == -SIGKILL
                members.remove(each)
            while len(members) < _MEMBERS:
                point = chance.choice(POINTS) if killed < most and chance.random() < 0.5 else ""
                arguments = (str(world.config), direction, plant, point, chance.choice((1, 1, 2, 5)))
                members.append(_FORKS.Process(target=_member, args=arguments, daemon=True))
                members[-1].start()
            members[0].join(chance.uniform(0.05, 1.5))
            if killed < most:
                members[0].kill()
                members[0].join()
    finally:
        for each in members:
            each.kill()
            each.join()
    return killed


def _member(config: str, direction: str, plant: str, point: str, number: int) -> None:
    """Move until nothing is left to do; with `point`, get killed there."""
    vars(worker)["_SLOW_SECONDS"] = 0.01
    said = os.open(_log(Path(config)), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if plant:
        FAULTS[plant].put_back(setattr)
    if point:
        end_at(point, number, SIGKILL)
    drive(with_direction(Path(config), direction))


def _log(config: Path) -> Path:
    return config.with_name("consumers.log")


def _said(config: Path) -> str:
    """Return the last lines of the consumers, for one that ended by an error."""
    return "\n".join(["a consumer ended by an error:", *_log(config).read_text("utf-8", "replace").split("\n")[-30:]])


def _is_done(world: World, direction: str) -> bool:
    query = (
        "SELECT (SELECT count(*) FROM headrace.rehash_moves WHERE state NOT IN ('settled', 'failed')),"
        " (SELECT count(*) FROM headrace.rehash_cursors WHERE finished),"
        " (SELECT max(direction) FROM headrace.rehash_runs)"
    )
    finished = PARTITIONS if direction == "forward" else 0
    return world.connection.execute(query).fetchone() == (0, finished, direction)
