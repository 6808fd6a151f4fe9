"""`make chaos ONLY=moves`: repositories move while they are read and pushed to, and consumers are killed.

Readers resolve and open repositories all the time, and must always find each one whole. A writer pushes to each
repository's current home. Consumers are killed by SIGKILL throughout the migration. At the end there is one copy of
each repository, at its new home, whole, with the refs that it had and everything that was pushed.
`python -m tests.chaos.moves` plays once, with any number of repositories and kills.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from consumers.routing.lookup import CursorTooOld, Router
from consumers.routing.placement import PARTITIONS, md5_home, normalised, rendezvous_home
from consumers.testing.waiting import PATIENCE, until
from infra.settings.file import load_settings
from infra.stack import Stack, embedded_stack
from tests.consumers.container_repositories import MEMBER, write_settings
from tests.consumers.gitservers import (
    NODES,
    Application,
    Disks,
    clone_template,
    git,
    is_whole,
    make_repository,
    make_tables,
    refs,
)

CHECKOUT: Final = Path(__file__).parents[2]
_READERS: Final = 4
_HELPERS: Final = (*(("reader", number) for number in range(_READERS)), ("writer", 0))
_MEMBERS: Final = 2
_PAUSE_SECONDS: Final = 0.005
"""Pause between two reads of a reader, which leaves the machine time to move repositories."""
_GRACE_SECONDS: Final = 3.0
_BY_GIT: Final = 25
"""A reader opens a repository with git every this many reads; otherwise it reads the files that git would."""


@dataclass
class Ordeal:
    """One play: its database, its disks, and the processes that it started."""

    directory: Path
    dsn: str
    config: Path
    disks: Disks
    names: list[str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def member(self) -> subprocess.Popen[bytes]:
        return self._started([sys.executable, "-c", MEMBER, str(self.config), "rehash_moves", "no"])

    def helper(self, kind: str, seed: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.chaos.moves", f"--{kind}", str(self.config), "--seed", str(seed)]
        with (self.directory / f"{kind}-{seed}.json").open("wb") as output:
            return self._started(command, stdout=output)

    def output(self, kind: str, seed: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / f"{kind}-{seed}.json").read_text())
        return found

    def begun(self, kind: str, seed: int) -> bool:
        """Return whether a helper process has done its first piece of work."""
        return (self.directory / f"{kind}-{seed}.begun").exists()

    def settled(self) -> int:
        """Return how many repositories are moved; only the database's last answer counts."""
        return self._count("SELECT count(*) FROM headrace.rehash_moves WHERE state = 'settled'")

    def finished(self) -> bool:
        """Return whether every partition is finished."""
        return self._count("SELECT count(*) FROM headrace.rehash_cursors WHERE finished") == PARTITIONS

    def _count(self, query: str) -> int:
        try:
            with psycopg.connect(self.dsn, autocommit=True, connect_timeout=5) as connection:
                row = connection.execute(query).fetchone()
        except (psycopg.OperationalError, psycopg.errors.UndefinedTable):
            return 0
        assert row is not None
        return int(row[0])

    def _started(self, command: list[str], *, stdout: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            self.processes.append(subprocess.Popen(command, cwd=CHECKOUT, stdout=stdout, stderr=log))
        return self.processes[-1]


def play_round(stack: Stack, directory: Path, seed: int) -> Mapping[str, Any]:
    """Play with 100 repositories, ten killed consumers and one crash of the database server."""
    return play(stack, directory, seed, crashes=1)


def play(
    stack: Stack, directory: Path, seed: int, *, repositories: int = 100, kills: int = 10, crashes: int = 0
) -> Mapping[str, Any]:
    """Play once and return a summary. Raises AssertionError if a promise was broken.

    `crashes` is how often the database server is killed too, which needs a stack of the caller's own.
    """
    chance = random.Random(seed)
    ordeal = _prepared(stack, Path(tempfile.mkdtemp(prefix=f"moves-{seed}-", dir=directory)), repositories)
    crashing = {kills * number // (crashes + 1) + 1 for number in range(1, crashes + 1)}
    began = time.monotonic()
    try:
        helpers = [ordeal.helper(kind, number) for kind, number in _HELPERS]
        _wait(lambda: all(ordeal.begun(kind, number) for kind, number in _HELPERS), ordeal)
        members = [ordeal.member() for _ in range(_MEMBERS)]
        for number in range(1, kills + 1):
            _wait(lambda number=number: ordeal.settled() >= number * repositories // (kills + 1), ordeal)  # type: ignore[misc]
            time.sleep(chance.uniform(0.0, 0.5))
            if number in crashing:
                stack.postgres.kill()
                stack.postgres.start()
            victim = chance.randrange(_MEMBERS)
            members[victim].kill()
            members[victim].wait()
            members[victim] = ordeal.member()
        _wait(lambda: ordeal.settled() >= repositories and ordeal.finished(), ordeal)
        took = time.monotonic() - began
        for each in [*members, *helpers]:
            each.send_signal(signal.SIGTERM)
        for each in [*members, *helpers]:
            each.wait(PATIENCE)
    finally:
        for each in ordeal.processes:
            each.kill()
            each.wait()
    readings = [ordeal.output("reader", number) for number in range(_READERS)]
    pushed = ordeal.output("writer", 0)["pushed"]
    _judge(ordeal, readings, pushed)
    return {
        "repositories": repositories,
        "seconds": round(took, 1),
        "kills": kills,
        "crashes": crashes,
        "reads": sum(reading["opened"] for reading in readings),
        "failed_reads": 0,
        "pushes": sum(map(len, pushed.values())),
        "lost_pushes": 0,
    }


def _prepared(stack: Stack, directory: Path, repositories: int) -> Ordeal:
    name = f"moves_{os.urandom(4).hex()}"
    dsn = stack.postgres.create_database(name)
    disks = Disks(directory / "disks")
    config = write_settings(
        directory / "headrace.toml",
        {
            "prefix": name,
            "kafka": {"bootstrap_servers": stack.endpoints.bootstrap_servers},
            "databases": {"main": {"dsn": dsn, "gitlab_schemas": ["gitserver"]}},
            "gitserver": {**disks.settings(), "refresh_seconds": 0.25, "grace_seconds": _GRACE_SECONDS},
        },
    )
    names = [f"github.com/Team-{number % 7}/Repository-{number}" for number in range(repositories)]
    template = directory / "template"
    make_repository(template, commits=3, branches=("main", "next"))
    git(template, "pack-refs", "--all")
    for each in names:
        clone_template(template, disks.old(each), each)
    expected = {each: refs(disks.old(each)) for each in names}
    (directory / "expected.json").write_text(json.dumps(expected))
    with psycopg.connect(dsn, autocommit=True) as connection:
        make_tables(connection)
        application = Application(load_settings(config), connection)
        application.add({each: md5_home(each, NODES) for each in names})
        application.publish()
    return Ordeal(directory, dsn, config, disks, names)


def _wait(condition: Callable[[], bool], ordeal: Ordeal, seconds: float = 900.0) -> None:
    log = ordeal.directory / "log"
    until(condition, "the moves make progress", seconds, seen=lambda: log.read_text()[-2000:])


def _judge(ordeal: Ordeal, readings: list[dict[str, Any]], pushed: dict[str, dict[str, str]]) -> None:
    assert ordeal.disks.leftovers() == []
    for reading in readings:
        assert reading["failures"] == [], reading["failures"][:3]
        assert reading["opened"] > 0
    expected: dict[str, dict[str, str]] = json.loads((ordeal.directory / "expected.json").read_text())
    for name in ordeal.names:
        assert ordeal.disks.copies(name) == [ordeal.disks.new(name)], f"{name}: {ordeal.disks.copies(name)}"
        assert refs(ordeal.disks.new(name)) == {**expected[name], **pushed.get(name, {})}, name
        assert is_whole(ordeal.disks.new(name)), name
    with psycopg.connect(ordeal.dsn, autocommit=True) as connection:
        rows = connection.execute("SELECT r.name, g.shard_id FROM repo r JOIN gitserver_repos g ON g.repo_id = r.id")
        assert dict(rows.fetchall()) == {name: rendezvous_home(name, NODES) for name in ordeal.names}


class _StopSignal:
    """Whether the process was asked to stop."""

    def __init__(self) -> None:
        self.stop = False
        signal.signal(signal.SIGTERM, self._tell)

    def _tell(self, *_: object) -> None:
        self.stop = True


def read(config: Path, seed: int) -> None:
    """Resolve and open repositories until asked to stop; print how many, and what failed."""
    stop_signal, chance = _StopSignal(), random.Random(seed)
    settings = load_settings(config)
    disks = Disks(config.parent / "disks")
    expected: dict[str, dict[str, str]] = json.loads((config.parent / "expected.json").read_text())
    names = list(expected)
    opened, failures = 0, []
    with closing(Router(settings.database("main").dsn.get_secret_value(), settings.gitserver)) as router:
        while not stop_signal.stop:
            name = chance.choice(names)
            problems = []
            began, sure = time.monotonic(), _is_sure(router, name)
            for node in router.homes(name):
                place = disks.path(node) / normalised(name) / ".git"
                if not (place / "HEAD").exists():
                    problems.append(f"not at {node}")
                    continue
                commit = _by_git(place) if opened % _BY_GIT == 0 else _by_files(place)
                problems = [] if commit == expected[name]["refs/heads/main"] else [f"at {node}: {commit}"]
                break
            if problems and not (sure and time.monotonic() - began < _GRACE_SECONDS / 2):
                # The machine suspended this process for so long that the copy may be gone within this one read.
                continue
            if problems:
                failures.append(f"{name}: {problems}")
            opened += 1
            if opened == 1:
                (config.parent / f"reader-{seed}.begun").touch()
            time.sleep(_PAUSE_SECONDS)
    print(json.dumps({"opened": opened, "failures": failures}))


def _is_sure(router: Router, name: str) -> bool:
    """Return whether the cursors are recent enough for a reader: at most half of the grace period old."""
    try:
        router.home(name)
    except CursorTooOld:
        return False
    return True


def _by_git(place: Path) -> str:
    done = subprocess.run(
        ["git", f"--git-dir={place}", "rev-list", "--objects", "--max-count=1", "main"],
        capture_output=True,
        check=False,
    )
    return done.stdout.decode().partition("\n")[0] or done.stderr.decode()


def _by_files(place: Path) -> str:
    """Return the commit of HEAD, found in the files as git does; its objects have to exist."""
    try:
        ref = (place / "HEAD").read_text().strip().removeprefix("ref: ")
        try:
            commit = (place / ref).read_text().strip()
        except FileNotFoundError:
            packed = (place / "packed-refs").read_text().splitlines()
            commit = next(line.split(" ")[0] for line in packed if line.endswith(f" {ref}"))
        loose = place / "objects" / commit[:2] / commit[2:]
        if loose.exists() or any((place / "objects" / "pack").glob("*.pack")):
            return commit
    except (OSError, StopIteration) as error:
        return repr(error)
    return "its objects are missing"


def write(config: Path, seed: int) -> None:
    """Push to repositories at their homes until asked to stop; print the accepted branches."""
    stop_signal, chance = _StopSignal(), random.Random(1_000 + seed)
    settings = load_settings(config)
    disks = Disks(config.parent / "disks")
    names = list(json.loads((config.parent / "expected.json").read_text()))
    pushed: dict[str, dict[str, str]] = {}
    clone = config.parent / "working-copy"
    make_repository(clone)
    number = 0
    with closing(Router(settings.database("main").dsn.get_secret_value(), settings.gitserver)) as router:
        while not stop_signal.stop:
            name = chance.choice(names)
            number += 1
            branch = f"refs/heads/pushed-{number}"
            try:
                place = disks.path(router.home(name)) / normalised(name) / ".git"
            except CursorTooOld:
                continue
            done = subprocess.run(
                ["git", f"--git-dir={clone}", "push", "--quiet", str(place), f"main:{branch}"],
                capture_output=True,
                check=False,
            )
            # A refused push is for the pusher to repeat; an accepted one must never be lost.
            if done.returncode == 0:
                pushed.setdefault(name, {})[branch] = git(clone, "rev-parse", "main")
                (config.parent / f"writer-{seed}.begun").touch()
            time.sleep(0.05)
    print(json.dumps({"pushed": pushed}))


def main() -> int:
    """Play with the command line's options."""
    arguments = argparse.ArgumentParser(prog="python -m tests.chaos.moves", description=__doc__)
    arguments.add_argument("--repositories", type=int, default=1_000)
    arguments.add_argument("--kills", type=int, default=50)
    arguments.add_argument("--crashes", type=int, default=2, help="crashes of the database server")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--reader", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--writer", type=Path, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.reader:
        read(chosen.reader, chosen.seed)
        return 0
    if chosen.writer:
        write(chosen.writer, chosen.seed)
        return 0
    with embedded_stack(fsync=False) as stack, tempfile.TemporaryDirectory(prefix="headrace-moves-") as directory:
        try:
            story = play(
                stack,
                Path(directory),
                chosen.seed,
                repositories=chosen.repositories,
                kills=chosen.kills,
                crashes=chosen.crashes,
            )
        except AssertionError as error:
            print(f"seed {chosen.seed}: {error}", file=sys.stderr)
            return 1
    print(dict(story))
    return 0


if __name__ == "__main__":
    sys.exit(main())
