"""`make chaos ONLY=readers`: readers in Python, Go and Ruby read while repositories move back and forth under kills.

Each reader follows docs/how-to/routing.md alone, and reads with git (tests/readers). A writer pushes to where the
cursors say that a repository is. No read may fail, and each has to show what was pushed to the home that readers were
sent to when the reader asked for the cursors: that exposes a reader that uses older cursors than it believes.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from consumers.routing.lookup import Database as Cursors
from consumers.routing.lookup import Reading, homes
from consumers.routing.placement import Placement, normalised
from consumers.testing.waiting import until
from infra.stack import Stack
from tests.chaos.movers import move_under_kills
from tests.conftest import Database
from tests.consumers.gitserver.driver import CHECKOUT, World, drive, moving, with_direction
from tests.consumers.gitservers import NODES, commit_stream, make_repository, make_tables
from tests.readers import READERS, NotInstalled, command

_NAMES: Final = (
    "github.com/Team-{}/Repository.git",
    "gitlab.example/Team-{}/Repository",
    "DELETED-1650360042.603863-github.com/Team-{}/Gone",
    "İSTANBUL.Example/ΟΔΟΣ-{}",
)
_REFRESH_SECONDS: Final = 0.25
_GRACE_SECONDS: Final = 3.0
_PAUSE_SECONDS: Final = 0.1
"""Pause between two reads of a reader."""
_PATIENCE_SECONDS: Final = 120.0
_MOST_WAYS: Final = 10
"""Time after which a wrong reader counts as not detected."""
# `headrace consume` refuses triggers on headrace's tables; the consumers here run without that check (movers.py).
_STATES: Final = """
    CREATE TABLE public.states (name text COLLATE "C", state text, at double precision);
    CREATE FUNCTION public.log_state() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.states
            VALUES (NEW.name, NEW.state, extract(epoch FROM clock_timestamp())::double precision);
            RETURN NEW;
        END $$;
    CREATE TRIGGER log_state AFTER UPDATE ON headrace.rehash_moves
        FOR EACH ROW WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION public.log_state();
"""


class Push(NamedTuple):
    """The number in main's file after a push, where it was pushed, and when the push began and was accepted."""

    number: int
    node: str
    began: float
    done: float


class Span(NamedTuple):
    """A time span, in seconds since the epoch."""

    began: float
    ended: float

    def meets(self, began: float, ended: float) -> bool:
        return began <= self.ended and self.began <= ended


@dataclass(frozen=True)
class Story:
    """What happened to each name while it was read."""

    pushes: Mapping[str, Sequence[Push]]
    unsure: Mapping[str, Sequence[Span]]
    """When readers were being redirected: at the end of the span all later requests go to the new home."""
    moves: Mapping[str, Sequence[Span]]
    """When there were two copies, or one was being removed: at the end of the span one has all that was pushed."""

    def required(self, name: str, asked: float) -> int:
        """Return the least number that a read may show whose cursors were requested at `asked`."""
        return max((push.number for push in self.pushes.get(name, ()) if self._is_shown(name, push, asked)), default=0)

    def _is_shown(self, name: str, push: Push, asked: float) -> bool:
        if push.done > asked:
            return False
        if any(push.done <= move.ended <= asked for move in self.moves.get(name, ())):
            return True
        return not any(span.meets(push.began, asked) for span in self.unsure.get(name, ()))


@dataclass
class Judged:
    """A reader's reads: how many in all, during a move, and answered by the second home, and what failed.

    `old` are reads with cursors older than half of the grace period: correct, but no proof. `stalled` are reads that
    failed after the machine had suspended the reader for longer than the grace period allows.
    """

    reads: int = 0
    in_moves: int = 0
    second: int = 0
    old: int = 0
    stalled: int = 0
    failures: list[str] = field(default_factory=list)


def judge(story: Story, reads: Iterator[Mapping[str, Any]], grace: float) -> Judged:
    """Return the verdict on a reader's reads."""
    found = Judged()
    for read in reads:
        name, key = read["name"], normalised(read["name"])
        found.reads += 1
        found.in_moves += any(span.meets(read["began"], read["ended"]) for span in story.moves.get(key, ()))
        found.old += read["began"] - read["asked"] > grace / 2
        found.second += len(read["tried"]) > 1 and not read["error"]
        if read["error"]:
            if read["ended"] - read["began"] > grace / 2 or read["began"] - read["asked"] > grace / 2:
                found.stalled += 1
            else:
                found.failures.append(f"{name} at {read['tried']}: {read['error']}")
        elif (shown := int(read["value"])) < (least := story.required(key, read["asked"])):
            found.failures.append(f"{name} at {read['tried']}: read {shown}, but {least} was pushed before")
    return found


class Writer:
    """Pushes increasing numbers to main, one repository after another, where the cursors say that they are."""

    def __init__(self, world: World, names: Sequence[str]) -> None:
        self._world = world
        self._names = names
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.pushes: dict[str, list[Push]] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        placement = Placement(NODES)
        with closing(Cursors(self._world.settings.database("main").dsn.get_secret_value())) as cursors:
            for number, name in zip(itertools.count(1), itertools.cycle(self._names)):
                if self._stop.wait(0.02):
                    return
                began = time.time()
                node = homes(placement, name, Reading(0.0, cursors.ask()))[0]
                stream = commit_stream("refs/heads/main", number, str(number), parent=True)
                pushed = subprocess.run(
                    ["git", f"--git-dir={self._world.disks.place(node, name)}", "fast-import", "--quiet"],
                    input=stream, capture_output=True, check=False,
                )  # fmt: skip
                if pushed.returncode == 0:
                    self.pushes.setdefault(normalised(name), []).append(Push(number, node, began, time.time()))


@contextmanager
def route_service(config: Path, log: Path) -> Iterator[str]:
    """Run `headrace route --serve`; yield its address."""
    serving = [sys.executable, "-m", "headrace", "route", "--serve", "--port", "0", "--config", str(config)]
    with log.open("wb") as output:
        process = subprocess.Popen(serving, cwd=CHECKOUT, stdout=output, stderr=output)
    try:
        found = _waited(re.compile(r'"port": (\d+)'), log, log)
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        process.terminate()
        process.wait()


def _waited(pattern: re.Pattern[str], file: Path, log: Path) -> re.Match[str]:
    """Wait until a file has a match; raises AssertionError with the log on timeout."""
    match = until(
        lambda: pattern.search(file.read_text(encoding="utf-8")),
        f"{pattern.pattern} in {file.name}",
        _PATIENCE_SECONDS,
        seen=lambda: log.read_text(encoding="utf-8")[-2_000:],
    )
    assert match is not None
    return match


def play_round(stack: Stack, directory: Path, seed: int) -> Mapping[str, Any]:
    """Play all four readers, with 30 kills."""
    return play(stack, directory, seed, repositories=40, kills=30)


def play(
    stack: Stack, directory: Path, seed: int, *, repositories: int, kills: int, wrong: Sequence[str] = ()
) -> Mapping[str, Any]:
    """Play once, back and forth, until the given number of consumers were killed.

    Returns what each reader did; with `wrong`, also what the wrong readers did, once each was detected. Raises
    AssertionError if a read of any other reader failed.
    """
    place = Path(tempfile.mkdtemp(prefix=f"readers-{seed}-", dir=directory))
    name = f"readers_{os.urandom(4).hex()}"
    with ExitStack() as opened:
        database = Database(name, stack.postgres.create_database(name), opened)
        make_tables(database.connect())
        timing = {"refresh_seconds": _REFRESH_SECONDS, "grace_seconds": _GRACE_SECONDS}
        world = World(database, place, kafka=stack.endpoints.bootstrap_servers, prefix=name, gitserver=timing)
        world.connection.execute(_STATES.encode())
        names = moving(_NAMES[number % len(_NAMES)].format(number) for number in range(2 * repositories))[:repositories]
        world.add(names, make=_make)
        return _play(world, names, place, random.Random(seed), kills, wrong)


def _make(place: Path) -> None:
    make_repository(place)
    _import(place, commit_stream("refs/heads/main", 0, "0", parent=True))


def _import(place: Path, stream: bytes) -> None:
    subprocess.run(["git", f"--git-dir={place}", "fast-import", "--quiet"], input=stream, check=True)


def _play(
    world: World, names: Sequence[str], place: Path, chance: random.Random, kills: int, wrong: Sequence[str]
) -> Mapping[str, Any]:
    began, killed, ways = time.monotonic(), 0, 0
    writer = Writer(world, names)
    missing: dict[str, str] = {}
    readers: dict[str, subprocess.Popen[bytes]] = {}
    with route_service(world.config, place / "route.log") as url, ExitStack() as ending:
        work = place / "work.json"
        work.write_text(json.dumps(_work(world, names, url)), encoding="utf-8")
        for reader in (*READERS, *wrong):
            try:
                start = command(reader, place)
            except NotInstalled as error:
                missing[reader] = str(error)
                continue
            readers[reader] = ending.enter_context(_started([*start, str(work)], place, reader))
        for reader in readers:
            _waited(re.compile("."), place / f"{reader}.jsonl", place / f"{reader}.log")
        writer.start()
        ending.callback(writer.stop)

        def all_read() -> None:
            for reader, process in readers.items():
                assert process.poll() is None, (reader, (place / f"{reader}.log").read_text()[-2_000:])

        for direction in itertools.cycle(("forward", "reverse")):
            ways += 1
            killed += move_under_kills(world, direction, chance, most=kills, meanwhile=all_read)
            drive(with_direction(world.config, direction))
            world.new_run()
            unseen = [each for each in wrong if not _judged(world, writer, place, each).failures]
            if killed >= kills and (not unseen or ways == _MOST_WAYS):
                break
        took = round(time.monotonic() - began, 1)
    judged = {reader: _judged(world, writer, place, reader) for reader in readers}
    for reader in readers.keys() - set(wrong):
        assert not judged[reader].failures, (reader, judged[reader].failures[:3])
        assert judged[reader].in_moves > 0, reader
        assert judged[reader].old < judged[reader].reads / 2, (reader, "cursors are too old", judged[reader])
    return {
        "repositories": len(names), "ways": ways, "kills": killed, "pushes": sum(map(len, writer.pushes.values())),
        "seconds": took, "missing": missing,
        **{reader: _figures(found) for reader, found in judged.items()},
    }  # fmt: skip


def _judged(world: World, writer: Writer, place: Path, reader: str) -> Judged:
    lines = (place / f"{reader}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]  # the last line may be incomplete
    return judge(_story(world, writer), map(json.loads, lines), _GRACE_SECONDS)


def _figures(found: Judged) -> dict[str, int]:
    figures = {"reads": found.reads, "in_moves": found.in_moves, "second_home": found.second, "old_cursors": found.old}
    return {**figures, "stalled": found.stalled, "failed": len(found.failures)}


def _work(world: World, names: Sequence[str], url: str) -> dict[str, Any]:
    return {
        # lib/pq requires TLS by default.
        "dsn": f"{world.settings.database('main').dsn.get_secret_value()}?sslmode=disable",
        "url": url,
        "nodes": NODES,
        "pins": {},
        "roots": {node: str(world.disks.path(node)) for node in NODES},
        "names": names,
        "refresh_seconds": _REFRESH_SECONDS,
        "pause_seconds": _PAUSE_SECONDS,
    }


@contextmanager
def _started(words: Sequence[str], place: Path, reader: str) -> Iterator[subprocess.Popen[bytes]]:
    with (place / f"{reader}.jsonl").open("wb") as output, (place / f"{reader}.log").open("wb") as log:
        process = subprocess.Popen(words, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=output, stderr=log)
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_PATIENCE_SECONDS)
        finally:
            process.kill()
            process.wait()


def _story(world: World, writer: Writer) -> Story:
    copied: dict[str, float] = {}
    unsure: dict[str, list[Span]] = {}
    moves: dict[str, list[Span]] = {}
    began: dict[str, float] = {}
    for name, state, at in world.connection.execute("SELECT name, state, at FROM public.states ORDER BY at"):
        if state == "copied":
            copied[name] = at
            began.setdefault(name, at)
        elif state == "passed":
            unsure.setdefault(name, []).append(Span(copied[name], at))
        elif state == "settled" and name in began:
            moves.setdefault(name, []).append(Span(began.pop(name), at))
    return Story(writer.pushes, unsure, moves)
