"""An application in the foreground while something else works: its p99 then, compared with its p99 when alone."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from infra.stack.processes.keeper import Guarded
from schemas.errors import HeadraceError
from tests.benchmarks.bench import Bench, Site

_STOP_SECONDS: Final = 20.0
_SAMPLE_SECONDS: Final = 0.01

_WAITS: Final = """
    SELECT extract(epoch FROM max(clock_timestamp() - l.waitstart)) * 1000
      FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
     WHERE NOT l.granted AND a.application_name LIKE %s
"""


@dataclass(frozen=True, slots=True)
class Window:
    """A time span, in seconds of the monotonic clock."""

    start: float
    end: float


class Application:
    """Runs as a separate process; see foreground_load."""

    def __init__(self, bench: Bench, process: Guarded, lines: Path) -> None:
        self._bench = bench
        self._process = process
        self._lines = lines
        self.pid = process.pid

    def window(self, seconds: float) -> Window:
        """Let it work alone for the given time; return the time span."""
        start = time.monotonic()
        for _ in self._bench.watched("the application", self._process, every=0.1):
            if time.monotonic() > start + seconds:
                break
        return Window(start, time.monotonic())

    def p99(self, name: str, *windows: Window) -> float:
        """Return the 99th percentile of a statement's milliseconds, over executions due in the windows."""
        taken = []
        for line in self._lines.read_text(encoding="utf-8").splitlines():
            fields = line.split()
            if len(fields) == 3 and fields[0] == name:
                due = float(fields[1])
                if any(window.start <= due <= window.end for window in windows):
                    taken.append(float(fields[2]))
        if len(taken) < 50:
            raise HeadraceError(f"{len(taken)} statements of {name} are too few for a p99", remedy="try more --rows")
        return sorted(taken)[len(taken) * 99 // 100]


@contextlib.contextmanager
def working(site: Site, statements: Mapping[str, Mapping[str, object]]) -> Iterator[Application]:
    """Run an application that executes `statements`; raise at the end if one of them failed."""
    bench, name = site.bench, f"application-{site.prefix}"
    lines = bench.place / f"{name}.lines"
    words = [str(bench.kept_private(f"{name}.dsn", site.dsn)), json.dumps(statements), str(lines)]
    process = bench.start(name, [sys.executable, "-m", "tests.benchmarks.foreground_load", *words])
    try:
        for _ in bench.watched("the application", process):
            if lines.exists() and lines.stat().st_size:
                break
        yield Application(bench, process, lines)
        if process.poll() is not None:
            raise HeadraceError(f"the application ended: {process.last_lines()}", remedy="")
    finally:
        process.stop(signal.SIGTERM, _STOP_SECONDS)


class LockWaits:
    """Samples how long sessions, by application_name, wait for locks, according to the server.

    `longest` is in milliseconds. A wait shorter than the sampling interval may be missed.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._stop = threading.Event()

    def sample(self, connection: psycopg.Connection[Any], like: str) -> None:
        """Sample until stopped."""
        while not self._stop.wait(_SAMPLE_SECONDS):
            row = connection.execute(_WAITS.encode(), (like,), prepare=True).fetchone()
            if row is not None and row[0] is not None:
                self.longest = max(self.longest, float(row[0]))

    def stop(self) -> None:
        """Stop `sample`."""
        self._stop.set()


@contextlib.contextmanager
def lock_waits(dsn: str, like: str) -> Iterator[LockWaits]:
    """Sample, in a thread, the sessions whose application_name is LIKE `like`; raise any error at the end."""
    waits = LockWaits()
    with psycopg.connect(dsn, autocommit=True) as connection, ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(waits.sample, connection, like)
        try:
            yield waits
        finally:
            waits.stop()
        sampling.result()


@contextlib.contextmanager
def reading(dsn: str, table: str) -> Iterator[None]:
    """Run a transaction that has read the table and stays open, like a long report."""
    with psycopg.connect(dsn, application_name="report") as connection:
        connection.execute(f"SELECT count(*) FROM {table}".encode())
        yield
