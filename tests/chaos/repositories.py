"""`make chaos ONLY=repositories`: every kind of repository moves back and forth under pushes, deletions, gc and kills.

Two consumers move repositories and are killed repeatedly, at a random moment or at a random step, until enough kills
hit them at work. A writer pushes, deletes branches, repacks and collects garbage in repositories whose kind is not
about writing. At the end of each direction there is one reachable copy of each repository, where its readers look, with
everything that its directory had before and everything that was pushed; or it was refused by name and left unchanged.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from consumers.repositories.storage import OWN
from consumers.routing.lookup import Database as Cursors
from consumers.routing.lookup import Reading, homes
from consumers.routing.placement import Placement
from infra.stack import Stack
from tests.chaos.movers import move_under_kills
from tests.conftest import Database
from tests.consumers.gitserver.comparing import Inventory, differences, make_all, misplaced
from tests.consumers.gitserver.driver import NAMES, World, drive, open_to_owners, with_direction
from tests.consumers.gitserver.kinds import KINDS, MARK, Kind, inventory
from tests.consumers.gitservers import NODES, commit_stream, make_tables

_PUSHED: Final = "refs/heads/pushed/"
_QUIET: Final = ("reflogs_with_commits_of_their_own", "partial", "executable_hooks")
"""Kinds that the writer leaves alone, besides those whose own files would run commands."""
_WRITTEN: Final = 0.6
"""The share of all others that it writes to."""
_BY_GC: Final = frozenset(("info", "info/refs"))
"""Files that a gc creates or rewrites, besides those it keeps."""
_AS_A_SERVER: Final = {
    "core.hooksPath": os.devnull,
    # What a gc removes by its own rules is not lost in a move.
    "gc.reflogExpire": "never",
    "gc.reflogExpireUnreachable": "never",
    "gc.worktreePruneExpire": "never",
}


@dataclass
class Writer:
    """Pushes, deletes, repacks and collects garbage at each repository's current home."""

    world: World
    names: list[str]
    chance: random.Random
    expected: dict[str, dict[str, str | None]] = field(default_factory=dict)
    """Name → branch → its commit, None if deleted; accepted pushes only."""
    done: int = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Write in a thread; raise at the end any error that stopped it."""
        stop = threading.Event()
        with ThreadPoolExecutor(1) as threads:
            writing = threads.submit(self._run, stop)
            try:
                yield
            finally:
                stop.set()
            writing.result()

    def _run(self, stop: threading.Event) -> None:
        placement = Placement(NODES)
        with closing(Cursors(self.world.settings.database("main").dsn.get_secret_value())) as cursors:
            while not stop.wait(0.02):
                name = self.chance.choice(self.names)
                reading = Reading(0.0, cursors.ask())
                for node in homes(placement, name, reading):
                    place = self.world.disks.place(node, name)
                    if os.path.lexists(place / "HEAD"):
                        self._write(name, place)
                        break

    def _write(self, name: str, place: Path) -> None:
        branches = self.expected.setdefault(name, {})
        alive = [branch for branch, value in branches.items() if value is not None]
        lot = self.chance.random()
        self.done += 1
        if lot < 0.15 and alive:
            branch = self.chance.choice(alive)
            # Only at its known commit: a branch that a late push brought to the other copy cannot be deleted here yet.
            if _git(place, "update-ref", "-d", branch, branches[branch] or "") is not None:
                branches[branch] = None
        elif lot < 0.2:
            _git(place, "gc", "--quiet", "--prune=never")
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
    """Run git in the repository's directory as a server does; None if it failed."""
    environment = {
        **os.environ,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_COUNT": str(len(_AS_A_SERVER)),
    }
    for number, (key, value) in enumerate(_AS_A_SERVER.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    try:
        done = subprocess.run(
            ["git", "--git-dir=.", *arguments],
            cwd=place, input=given, capture_output=True, check=False, env=environment, **_as_owner(place),
        )  # fmt: skip
    except FileNotFoundError:
        return None  # it has just been moved
    return done.stdout.decode().strip() if done.returncode == 0 else None


def _as_owner(place: Path) -> dict[str, Any]:
    status = place.stat()
    return {"user": status.st_uid, "group": status.st_gid, "extra_groups": ()} if os.geteuid() == 0 else {}


def play_round(stack: Stack, directory: Path, seed: int) -> Mapping[str, Any]:
    """Play all kinds, with 60 kills."""
    return play(stack, directory, seed, kinds=list(KINDS.values()), kills=60)


def play(
    stack: Stack, directory: Path, seed: int, *, kinds: list[Kind], kills: int, plant: str = ""
) -> Mapping[str, Any]:
    """Play once, back and forth as often as needed for the given number of kills.

    Raises AssertionError if a promise was broken. `plant` is a fault that consumers have.
    """
    chance = random.Random(seed)
    place = Path(tempfile.mkdtemp(prefix=f"repositories-{seed}-", dir=directory))
    place.chmod(0o711)
    open_to_owners(place)
    name = f"repositories_{os.urandom(4).hex()}"
    with ExitStack() as opened:
        database = Database(name, stack.postgres.create_database(name), opened)
        make_tables(database.connect())
        world = World(database, place, kafka=stack.endpoints.bootstrap_servers, prefix=name, tries=5)
        return _play(world, dict(zip(NAMES, kinds, strict=False)), chance, kills, plant)


def _play(world: World, named: Mapping[str, Kind], chance: random.Random, kills: int, plant: str) -> Mapping[str, Any]:
    before = make_all(world, named)
    # In repositories that are left alone every file must be unchanged, git's own included.
    written = [name for name, kind in named.items() if _may_be_written(kind) and chance.random() < _WRITTEN]
    writer = Writer(world, written, random.Random(chance.random()))
    began, killed, ways = time.monotonic(), 0, 0
    while killed < kills:
        for direction in ("forward", "reverse"):
            ways += 1
            with writer.at_work():
                killed += move_under_kills(world, direction, chance, plant=plant)
            drive(with_direction(world.config, direction))  # moves the last pushes
            faults = list(_faults(world, named, before, writer, direction=direction, first=ways == 1))
            assert not faults, (direction, faults[:5])
            world.new_run()
    pushes = sum(len(branches) for branches in writer.expected.values())
    took = round(time.monotonic() - began, 1)
    figures = {"repositories": len(named), "ways": ways, "kills": killed, "writes": writer.done}
    return {**figures, "pushes": pushes, "seconds": took}


def _may_be_written(kind: Kind) -> bool:
    own = kind.make.__module__.rpartition(".")[2]
    return kind.refused is None and kind.name not in _QUIET and own != "hostile"


def _faults(
    world: World,
    named: Mapping[str, Kind],
    before: Mapping[str, Inventory],
    writer: Writer,
    *,
    direction: str,
    first: bool,
) -> Iterator[tuple[str, str]]:
    # What was already at the new homes is set aside, and reported, in the first direction.
    said = {name: replace(kind, said=kind.said if first else None) for name, kind in named.items()}
    yield from misplaced(world, said, forward=direction == "forward")
    aside = [path for node in NODES for path in (world.disks.path(node) / OWN / "set-aside").glob("*")]
    if len(aside) != sum(kind.said is not None for kind in named.values()):
        yield "set aside", str(sorted(map(str, aside)))
    if lying := [path for path in world.disks.leftovers() if path not in aside]:
        yield "left behind", str(lying)
    if (world.disks.directory.parent / MARK).exists():
        yield "hostile", "a command from a repository ran"
    for name, kind in named.items():
        copies = world.disks.copies(name)
        if name in before and len(copies) == 1:
            now = inventory(copies[0])
            yield from ((kind.name, each) for each in _lost(writer.expected.get(name, {}), now))
            known = _written(before[name], now) if name in writer.names else before[name]
            yield from ((kind.name, each) for each in differences(known, now))


def _lost(pushed: Mapping[str, str | None], now: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with pushes and deletions, and remove them from the inventory."""
    for branch, value in pushed.items():
        if now["refs"].get(branch) != value:
            yield f"{branch}: {value} became {now['refs'].get(branch)}"
    now["refs"] = {ref: value for ref, value in now["refs"].items() if not ref.startswith(_PUSHED)}


def _written(before: Inventory, now: dict[str, Any]) -> Inventory:
    """Return what to compare of a repository that git wrote to: its contents are in other files now, and of those only
    the owner counts.
    """
    owners = {each[1:3] for each in before["stored"].values()}
    now["stored"] = {path: each for path, each in now["stored"].items() if each[1:3] not in owners}
    now["files"] = {path: each for path, each in now["files"].items() if path not in _BY_GC - before["files"].keys()}
    known = {path: now["files"].get(path) if path in _BY_GC else each for path, each in before["files"].items()}
    for files in (now["files"], known):
        if "shallow" in files:
            files["shallow"] = (*files["shallow"][:4], *files["shallow"][5:])  # a gc rewrites it
    return {**before, "files": known, "stored": {}}
