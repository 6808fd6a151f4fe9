"""Drives the moves of `rehash_moves` without Kafka: in the test's thread, or as a process that ends at a given point.

`python -m tests.consumers.gitserver.driver CONFIG POINT NUMBER kill|stop`: POINT is `module:function:before` or
`…:after`; there, the NUMBERth time, the process gets SIGKILL, as in a machine's crash, or SIGSTOP.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

from consumers.contract.external import Outside, Pace
from consumers.gitserver import states
from consumers.gitserver.tables import OWN_TABLES
from consumers.ledger.progress import Ledger
from consumers.migrations.rehash_moves import RehashMoves
from consumers.repositories.git import Steps, run
from consumers.routing.placement import md5_home, rendezvous_home
from consumers.runtime.assembly import consumer_of
from consumers.runtime.totals import Totals
from infra.postgres.control import ensure_control_schema
from infra.settings.file import load_settings
from infra.settings.model import Settings
from tests.conftest import Database
from tests.consumers.container_repositories import write_settings
from tests.consumers.gitservers import NODES, Disks, add_rows, make_repository

CHECKOUT = Path(__file__).parents[3]


def drive(settings: Settings, *, until: Callable[[], bool] = lambda: False, seconds: float = 400.0) -> None:
    """Move until all is done or `until` returns True; then close the work in progress.

    Raises AssertionError after so many seconds, with the moves and the locks as they are then.
    """
    migration = RehashMoves.configure(settings.migration("rehash_moves"))
    outside = Outside(settings, migration, "main")
    with psycopg.connect(settings.database("main").dsn.get_secret_value(), autocommit=True) as connection:
        outside.run = Ledger("rehash_moves", "gitserver", "test").begin(connection)
    deadline = time.monotonic() + seconds
    with closing(outside), closing(migration.work(outside)) as steps:  # type: ignore[type-var]
        for pace in steps:
            if pace is Pace.DONE or until():
                return
            assert time.monotonic() < deadline, "the moves never ended"
            if pace is Pace.WAITING:
                time.sleep(0.01)


def _stuck(settings: Settings) -> list[object]:
    """Return the rows of the moves, and the sessions that hold or await advisory locks."""
    with psycopg.connect(settings.database("main").dsn.get_secret_value(), autocommit=True) as connection:
        return [
            *connection.execute("SELECT * FROM headrace.rehash_moves"),
            *connection.execute(
                "SELECT l.objid, l.granted, a.pid, a.application_name, a.state, a.query, a.state_change"
                " FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory'"
            ),
        ]


def start(config: Path, point: str = "", number: int = 1, *, stop: bool = False) -> subprocess.Popen[bytes]:
    """Start a process that drives; see above. With `stop` it is stopped there (SIGSTOP) and may continue."""
    how = "stop" if stop else "kill"
    command = [sys.executable, "-m", "tests.consumers.gitserver.driver", str(config), point, str(number), how]
    return subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE)


def moving(names: Iterable[str]) -> list[str]:
    """Return the names whose two homes differ."""
    return [name for name in names if md5_home(name, NODES) != rendezvous_home(name, NODES)]


NAMES = moving(f"github.com/team/{number:03}" for number in range(200))


def broken(place: Path) -> None:
    """Create a repository that cannot be cloned: an object is missing."""
    make_repository(place)
    for pack in place.glob("objects/pack/*.pack"):
        pack.unlink()
    for found in place.glob("objects/??"):
        shutil.rmtree(found)


def member(settings: Settings) -> Totals:
    """Run a consumer in this thread until all is moved."""
    migration = RehashMoves.configure(settings.migration("rehash_moves"))
    return consumer_of(settings, migration, "main", stopping=threading.Event(), until_caught_up=True).run()


def hang(*_: Any, **__: Any) -> Steps[None]:
    """Run a command for longer than any test, instead of a part of a clone."""
    yield from run("sleep", "1000", seconds=1000.0)


class World:
    """A database with the application's rows and headrace's tables, and repositories on disks.

    `gitserver` and `options` are settings in addition to the tests' defaults.
    """

    def __init__(
        self, database: Database, directory: Path, *, kafka: str, prefix: str, gitserver: Any = None, **options: Any
    ) -> None:
        self.disks = Disks(directory / "disks")
        self.connection = database.connect()
        self.config = write_settings(
            directory / "headrace.toml",
            {
                "prefix": prefix,
                "kafka": {"bootstrap_servers": kafka},
                "databases": {"main": {"dsn": database.dsn, "gitlab_schemas": ["gitserver"]}},
                "gitserver": self.disks.settings(**(gitserver or {})),
                "migrations": {"rehash_moves": {"retry_seconds": 0.05, **options}},
            },
        )
        self.settings = load_settings(self.config)
        ensure_control_schema(self.connection, "main", ["gitserver"], OWN_TABLES)
        Ledger("rehash_moves", "gitserver", "test").begin(self.connection)

    def with_options(self, **options: Any) -> Settings:
        """Return the settings with other options of the migration."""
        section = self.settings.migration("rehash_moves").model_copy(update={"retry_seconds": 0.05, **options})
        return self.settings.model_copy(update={"migrations": {"rehash_moves": section}})

    def add(self, names: Sequence[str], *, make: Callable[[Path], None] = make_repository, new: bool = False) -> None:
        """Add repositories at their md5 homes (with `new`, at their rendezvous homes), recorded as from events."""
        for name in names:
            make(self.disks.new(name) if new else self.disks.old(name))
        self.note(self.rows(names))

    def rows(self, names: Sequence[str]) -> list[int]:
        """Insert rows of cloned repositories, and return their ids."""
        return add_rows(self.connection, {name: md5_home(name, self.disks.nodes) for name in names})

    def note(self, keys: Sequence[int]) -> int:
        """Record repositories as the events of these rows do; return how many were recorded."""
        with self.connection.transaction(), self.connection.cursor() as cursor:
            return states.note(cursor, states.cloned(cursor, keys))

    def states(self) -> dict[str, str]:
        """Return name → the state of its move."""
        return dict(self.connection.execute("SELECT name, state FROM headrace.rehash_moves").fetchall())

    def new_run(self) -> None:
        """Start a new run, as a replay does."""
        self.connection.execute("UPDATE headrace.migrations SET run = run + 1")


def with_direction(config: Path, direction: str) -> Settings:
    """Return the settings of a file with the direction of the moves in place of its own."""
    settings = load_settings(config)
    section = settings.migration("rehash_moves").model_copy(update={"direction": direction})
    return settings.model_copy(update={"migrations": {"rehash_moves": section}})


def open_to_owners(directory: Path) -> None:
    """Let other owners of repositories access them if root created the directory."""
    for each in (directory, *directory.parents):
        if os.geteuid() == 0 and each.stat().st_mode & 0o011 == 0:
            each.chmod(0o711)


def step_at(point: str) -> tuple[Any, str, Any]:
    """Return the owner of a point's function, its name there, and the function.

    Raises ImportError or AttributeError for a point that the product does not have.
    """
    module_name, function, _ = point.split(":")
    owner: Any = importlib.import_module(module_name)
    *path, name = function.split(".")
    for part in path:
        owner = getattr(owner, part)
    return owner, name, getattr(owner, name)


def end_at(point: str, number: int, with_signal: signal.Signals) -> None:
    """End or stop this process when it reaches a point for the NUMBERth time; see above. After a step of a generator is
    after its last one.
    """
    owner, name, original = step_at(point)
    when = point.rpartition(":")[2]
    calls = 0

    def reached(now: str) -> None:
        nonlocal calls
        calls += now == "before"
        if calls == number and now == when:
            os.kill(os.getpid(), with_signal)

    @functools.wraps(original)
    def deadly(*arguments: Any, **named: Any) -> Any:
        reached("before")
        result = original(*arguments, **named)
        reached("after")
        return result

    @functools.wraps(original)
    def deadly_steps(*arguments: Any, **named: Any) -> Steps[Any]:
        reached("before")
        result = yield from original(*arguments, **named)
        reached("after")
        return result

    setattr(owner, name, deadly_steps if inspect.isgeneratorfunction(original) else deadly)


if __name__ == "__main__":
    if sys.argv[2]:
        end_at(sys.argv[2], int(sys.argv[3]), signal.SIGSTOP if sys.argv[4] == "stop" else signal.SIGKILL)
    drive(load_settings(Path(sys.argv[1])))
