"""`make chaos ONLY=repositories`: every kind of repository moves there and back, under pushes, deletions, gc and kills.

Two members move; one of the two is killed again and again, at a random moment or at a step drawn by lot. A writer
pushes to, deletes branches of, and repacks those repositories that are not themselves about writing. At the end there
is one copy of each in reach, with everything that was in its directory before and all that was pushed: or it was
refused by name, and nothing of it was changed.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any, Final

from consumers.moving import mover
from consumers.placement import PARTITIONS, Placement
from consumers.routing import Database as Cursors
from consumers.routing import Reading, homes
from infra.settings import Settings, load_settings
from infra.stack import Stack
from tests.conftest import Database
from tests.consumers.gitservers import NODES, commit_stream, make_tables
from tests.consumers.moving.driver import NAMES, World, drive, end_at
from tests.consumers.moving.kinds import KINDS, MARK, Kind, inventory

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.consumers.moving.driver", "tests.chaos.repositories"])
_MEMBERS: Final = 2
_PATIENCE_SECONDS: Final = 900.0
_PUSHED: Final = "refs/heads/pushed/"
_POINTS: Final = tuple(
    f"consumers.moving.{point}:{when}"
    for point in (
        "copying:write_base",
        "moves:prove",
        "moves:carry",
        "moves:remove",
        "moves:finish",
        "moves:_put_by",
        "carrying:set_refs",
        "carrying:write_base",
        "carrying:bring_objects",
        "places:Root.install",
        "places:Root.take_away",
        "states:advance",
        "states:remark",
        "cursors:move",
        "cursors:mark_passed",
    )
    for when in ("before", "after")
)
_QUIET: Final = ("reflogs_with_commits_of_their_own", "partial", "executable_hooks")
"""Kinds that are left alone by the writer besides those whose own files would act."""


@dataclass
class Writer:
    """Pushes, deletes and repacks wherever a repository's home is, until it is told to stop."""

    world: World
    names: list[str]
    chance: random.Random
    stop: threading.Event = field(default_factory=threading.Event)
    expected: dict[str, dict[str, str | None]] = field(default_factory=dict)
    """Name → branch → its commit, None where it was deleted; only what was accepted."""
    done: int = 0

    def run(self) -> None:
        placement = Placement(NODES)
        with closing(Cursors(self.world.settings.database("main").dsn.get_secret_value())) as cursors:
            while not self.stop.wait(0.02):
                name = self.chance.choice(self.names)
                reading = Reading(0.0, cursors.ask())
                for node in homes(placement, name, reading):
                    place = self.world.disks.place(node, name)
                    if (place / "HEAD").exists():
                        self._write(name, place)
                        break

    def _write(self, name: str, place: Path) -> None:
        branches = self.expected.setdefault(name, {})
        alive = [branch for branch, value in branches.items() if value is not None]
        lot = self.chance.random()
        self.done += 1
        if lot < 0.15 and alive:
            branch = self.chance.choice(alive)
            if _git(place, "update-ref", "-d", branch) is not None:
                branches[branch] = None
        elif lot < 0.3:
            _git(place, "repack", "-dqn")
            _git(place, "pack-refs", "--all")
        else:
            branch = f"{_PUSHED}{self.done}"
            stream = commit_stream(branch, self.done, f"{name}{self.done}", parent=False)
            if _git(place, "fast-import", "--quiet", given=stream) is None:
                return
            if value := _git(place, "rev-parse", branch):
                branches[branch] = value


def _git(place: Path, *arguments: str, given: bytes = b"") -> str | None:
    """Run git in the repository as a server does, within its directory; None when it failed."""
    environment = {
        **os.environ,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.hooksPath",
        "GIT_CONFIG_VALUE_0": os.devnull,
    }
    try:
        done = subprocess.run(
            ["git", "--git-dir=.", *arguments],
            cwd=place, input=given, capture_output=True, check=False, env=environment,
        )  # fmt: skip
    except FileNotFoundError:
        return None
    return done.stdout.decode().strip() if done.returncode == 0 else None


def play_round(stack: Stack, directory: Path, seed: int) -> Mapping[str, Any]:
    """Play all kinds, with 30 kills on each of the two ways."""
    return play(stack, directory, seed, kinds=list(KINDS.values()), kills=30)


def play(stack: Stack, directory: Path, seed: int, *, kinds: list[Kind], kills: int) -> Mapping[str, Any]:
    """Play once, with so many kills each way. Raises AssertionError when a promise was broken."""
    chance = random.Random(seed)
    place = Path(tempfile.mkdtemp(prefix=f"repositories-{seed}-", dir=directory))
    for parent in place.parents:
        if os.geteuid() == 0 and parent.stat().st_mode & 0o011 == 0:
            parent.chmod(0o711)  # for the owner that a repository has who is not this process's
    place.chmod(0o711)
    name = f"repositories_{os.urandom(4).hex()}"
    with ExitStack() as opened:
        database = Database(name, stack.postgres.create_database(name), opened)
        make_tables(database.connect())
        return _play(stack, place, database, chance, kinds, kills)


def _play(
    stack: Stack, place: Path, database: Database, chance: random.Random, kinds: list[Kind], kills: int
) -> Mapping[str, Any]:
    name = database.name
    world = World(database, place, kafka=stack.endpoints.bootstrap_servers, prefix=name, tries=5)
    named = dict(zip(NAMES, kinds, strict=False))
    before = _made(world, named)
    writer = Writer(
        world, [each for each, kind in named.items() if _may_be_written(kind)], random.Random(chance.random())
    )
    thread = threading.Thread(target=writer.run, daemon=True)
    began, killed = time.monotonic(), 0
    thread.start()
    try:
        for direction in ("forward", "reverse"):
            killed += _move(world, direction, chance, kills)
            world.new_run()
    finally:
        writer.stop.set()
        thread.join()
    drive(_settings(world.config, "reverse"))  # what was pushed last
    faults = list(_faults(world, named, before, writer.expected))
    assert not faults, faults[:5]
    assert not (place / MARK).exists(), "a command of a repository's own ran"
    pushes = sum(len(branches) for branches in writer.expected.values())
    took = round(time.monotonic() - began, 1)
    return {"repositories": len(named), "kills": killed, "writes": writer.done, "pushes": pushes, "seconds": took}


def _made(world: World, named: Mapping[str, Kind]) -> dict[str, Any]:
    for name, kind in named.items():
        kind.make(world.disks.old(name))
    for name, kind in named.items():
        if kind.leave is not None:
            kind.leave(world.disks.new(name), world.disks.old(name))
    world.note(world.rows(list(named)))
    return {name: inventory(world.disks.old(name)) for name, kind in named.items() if kind.name != "head_is_missing"}


def _may_be_written(kind: Kind) -> bool:
    own = kind.make.__module__.rpartition(".")[2]
    return kind.refused is None and kind.name not in _QUIET and own != "hostile"


def _settings(config: Path, direction: str) -> Settings:
    settings = load_settings(config)
    section = settings.migration("rehash_moves").model_copy(update={"direction": direction})
    return settings.model_copy(update={"migrations": {"rehash_moves": section}})


def _member(config: str, direction: str, point: str, number: int) -> None:
    """Move until there is nothing left to do; with a point, be killed there."""
    vars(mover)["_SLOW_SECONDS"] = 0.01
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    if point:
        end_at(point, number, SIGKILL)
    drive(_settings(Path(config), direction))


def _move(world: World, direction: str, chance: random.Random, kills: int) -> int:
    """Move all in one direction; return how many members were killed."""
    members: list[Any] = []
    killed = 0
    deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        while not _is_done(world, direction) or killed < kills:
            assert time.monotonic() < deadline, f"it does not go on: {world.states()}"
            for each in [each for each in members if not each.is_alive()]:
                killed += each.exitcode == -SIGKILL
                members.remove(each)
            while len(members) < _MEMBERS:
                point = chance.choice(_POINTS) if killed < kills and chance.random() < 0.5 else ""
                arguments = (str(world.config), direction, point, chance.choice((1, 1, 2, 5)))
                members.append(_FORKS.Process(target=_member, args=arguments, daemon=True))
                members[-1].start()
            if killed < kills:
                members[0].join(chance.uniform(0.05, 1.5))
                members[0].kill()
                members[0].join()
            else:
                members[0].join(0.2)
    finally:
        for each in members:
            each.kill()
            each.join()
    return killed


def _is_done(world: World, direction: str) -> bool:
    query = (
        "SELECT (SELECT count(*) FROM headrace.rehash_moves WHERE state NOT IN ('settled', 'failed')),"
        " (SELECT count(*) FROM headrace.rehash_cursors WHERE finished),"
        " (SELECT max(direction) FROM headrace.rehash_runs)"
    )
    finished = PARTITIONS if direction == "forward" else 0
    return world.connection.execute(query).fetchone() == (0, finished, direction)


def _faults(
    world: World, named: Mapping[str, Kind], before: Mapping[str, Any], pushed: Mapping[str, Mapping[str, str | None]]
) -> Any:
    for name, kind in named.items():
        copies = world.disks.copies(name)
        if copies != [world.disks.old(name)]:
            yield kind.name, "lies at", copies
            continue
        if name not in before:
            continue
        was, now = before[name], inventory(copies[0])
        refs = {ref: value for ref, value in now["refs"].items() if not ref.startswith(_PUSHED)}
        if refs != was["refs"]:
            yield kind.name, "refs", sorted(set(refs.items()) ^ set(was["refs"].items()))[:4]
        for branch, value in pushed.get(name, {}).items():
            if value is not None and now["refs"].get(branch) != value:
                yield kind.name, "a push was lost", branch, value, now["refs"].get(branch)
        if was["objects"] - now["objects"]:
            yield kind.name, "objects", len(was["objects"] - now["objects"])
        if was["files"] != now["files"]:
            changed = [path for path in was["files"] | now["files"] if was["files"].get(path) != now["files"].get(path)]
            yield kind.name, "files", [(path, was["files"].get(path), now["files"].get(path)) for path in changed[:3]]
