"""Services that are restarted whenever they exit, and an application that writes continuously."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg

from consumers.testing.waiting import PATIENCE
from tests.consumers.container_repositories import TOO_MANY_TAGS

ROOT = Path(__file__).parents[2]


def advisory_lock_is_waited_for(connection: psycopg.Connection[Any]) -> bool:
    """Return whether some session of the server waits for an advisory lock."""
    found = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone()
    return found != (0,)


class Service:
    """A headrace command that is restarted whenever it exits, as by a service manager."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.codes: list[int] = []
        self._log = log
        self._arguments = arguments
        self._stop = threading.Event()
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            with self._starting, self._log.open("a") as log:
                if self._stop.is_set():
                    return
                self._process = run(log, *self._arguments)
            self.codes.append(self._process.wait())
            self._stop.wait(0.5)

    def kill(self) -> None:
        """Kill it; it is restarted."""
        if (process := self._process) is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def stop(self) -> None:
        with self._starting:  # none is started behind the one that is ended here
            self._stop.set()
        if (process := self._process) is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(180)
            process.kill()
        self._thread.join(PATIENCE)


def run(log: Any, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "headrace", *arguments], cwd=ROOT, stdout=log, stderr=log)


class Application:
    """Writes to both gitlab schemas continuously, each in its owner: when refused, it switches databases."""

    def __init__(self, dsns: Sequence[str], seed: int) -> None:
        self.transactions = 0
        self.refused = 0
        self._dsns = dsns
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self.error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True) for work in (self._moved, self._stays)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        if self.error is not None:
            raise self.error

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.error = error

    def _moved(self) -> None:
        side = 0
        while not self._stop.is_set():
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self._dsns[side]) as connection:
                while not self._stop.is_set():
                    try:
                        self._transaction(connection)
                    except psycopg.errors.ReadOnlySqlTransaction:
                        self.refused += 1
                        side = 1 - side
                        break
                    self.transactions += 1
                    self._stop.wait(0.005)

    def _transaction(self, connection: psycopg.Connection[Any]) -> None:
        draw = self._random
        key, kind = draw.randrange(1, 400), draw.random()
        if kind < 0.4:
            connection.execute(
                "INSERT INTO container_repositories"
                " (id, project_id, name, migration_state, migration_skipped_reason)"
                " VALUES (%s, 1, 'new', %s, %s) ON CONFLICT (id) DO UPDATE SET"
                " (migration_state, migration_skipped_reason) ="
                " (excluded.migration_state, excluded.migration_skipped_reason)",
                (key, *TOO_MANY_TAGS),
            )
        elif kind < 0.9:
            connection.execute("UPDATE container_repositories SET name = md5(name) WHERE id = %s", (key,))
        else:
            connection.execute("DELETE FROM container_repositories WHERE id = %s", (key,))
        if draw.random() < 0.1:
            connection.rollback()
        else:
            connection.commit()

    def _stays(self) -> None:
        draw = random.Random(1)
        with psycopg.connect(self._dsns[0], autocommit=True) as connection:
            while not self._stop.wait(0.01):
                connection.execute(
                    "INSERT INTO ci_builds VALUES (%s, 1) ON CONFLICT (id) DO UPDATE SET n = ci_builds.n + 1",
                    (draw.randrange(100),),
                )
