"""The demo's environment: servers, one settings file, and headrace's commands as separate processes.

headrace runs in the demo only by its commands, as an operator would run them; the acts start and kill them, watch, and
count.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg
import tomli_w
from rich.console import Console

from infra.kafka import clients
from infra.postgres.connect import connect
from infra.settings.model import KafkaSettings
from infra.stack import EmbeddedStack
from infra.stack.processes.keeper import Guarded
from infra.state.positions import Positions
from schemas.errors import HeadraceError

_PATIENCE: Final = 600.0
"""Seconds after which an unfinished step counts as failed."""

_PROGRESS: Final = """
SELECT coalesce(sum(next_offset), 0)::bigint, coalesce(sum(applied), 0)::bigint, coalesce(sum(skipped), 0)::bigint
FROM headrace.progress JOIN headrace.migrations ON name = migration AND headrace.progress.run = headrace.migrations.run
WHERE name = %s
"""

Connection = psycopg.Connection[Any]
Line = tuple[str, str]
"""A claim's title and its result."""


class ProofFailed(HeadraceError):
    """This is a bug: please report it, with the versions of headrace, PostgreSQL and Kafka."""


class Act(Protocol):
    """A part of the demo, about one migration."""

    @property
    def sections(self) -> Mapping[str, Mapping[str, Any]]:
        """Return its sections of the settings file."""

    def play(self) -> list[Line]:
        """Run it and return what was proven; raises ProofFailed if a claim is false."""


class Stage:
    """The servers and the processes on them, until `close`."""

    def __init__(self, console: Console, stack: EmbeddedStack, place: Path) -> None:
        self.console = console
        self.place = place
        self.kafka = KafkaSettings(bootstrap_servers=stack.endpoints.bootstrap_servers)
        self.positions = Positions("headrace", self.kafka)
        self._stack = stack
        self._held = ExitStack()
        self._running: list[Guarded] = []
        self._settings = place / "headrace.toml"
        self._started = 0

    def close(self) -> None:
        """Kill the running processes."""
        for process in self._running:
            process.kill()
        self._held.close()

    def database(self, name: str) -> tuple[str, Connection]:
        """Create a database; return its dsn and a connection."""
        dsn = self._stack.postgres.create_database(name)
        connection = connect(dsn, name="demo")
        # The demo acts as the application and its administrator here, in its own database.
        connection.execute("SET search_path = public")
        self._held.callback(connection.close)
        return dsn, connection

    def configure(self, acts: list[Act]) -> None:
        """Write the settings file."""
        document: dict[str, dict[str, Any]] = {"kafka": {"bootstrap_servers": self.kafka.bootstrap_servers}}
        for act in acts:
            for section, keys in act.sections.items():
                document.setdefault(section, {}).update(keys)
        self._settings.touch(mode=0o600)
        self._settings.write_text(tomli_w.dumps(document), encoding="utf-8")

    def start(self, *words: str) -> Guarded:
        """Start a command as a service."""
        self._started += 1
        log = self.place / f"{'-'.join(words)}-{self._started}.log"
        process = self._stack.keeper.start(self._words(*words), log=log, cwd=self.place, stop_signal=signal.SIGKILL)
        self._running.append(process)
        return process

    def end(self, *processes: Guarded) -> None:
        """Stop services with SIGTERM."""
        for process in processes:
            process.stop(signal.SIGTERM, 15)
            self._running.remove(process)

    def kill(self, process: Guarded) -> None:
        """Kill a service with SIGKILL."""
        process.kill()
        self._running.remove(process)

    def until_left(self, group: str) -> None:
        """Wait until the group is empty: a killed consumer stays a group member until its session times out."""
        with clients.translated(self.kafka):
            client = clients.admin(self.kafka)
            for _ in self.patiently(f"the group {group}"):
                if not client.describe_consumer_groups([group])[group].result(_PATIENCE).members:
                    return

    def command(self, *words: str) -> str:
        """Run a command to completion and return the last line of its output."""
        self._started += 1
        output = self.place / f"{'-'.join(words)}-{self._started}.out"
        self._stack.keeper.run(self._words(*words), log=output, cwd=self.place, timeout=_PATIENCE)
        lines = output.read_text(encoding="utf-8").splitlines()
        return lines[-1] if lines else ""

    def filter(self, *words: str, text: str) -> str:
        """Run a command that needs no settings, with `text` on its standard input; return its standard output."""
        argv = [sys.executable, "-m", "headrace", *words]
        ended = subprocess.run(
            argv, input=text, capture_output=True, text=True, check=False, cwd=self.place, timeout=_PATIENCE
        )
        if ended.returncode:
            raise HeadraceError(f"headrace {words[0]} failed: {ended.stderr.strip()}", remedy="")
        return ended.stdout

    def progress(self, connection: Connection, migration: str) -> tuple[int, int, int]:
        """Return the ledger's sums: next offsets, rows changed, events skipped."""
        if connection.execute("SELECT to_regclass('headrace.progress')").fetchone() == (None,):
            return 0, 0, 0
        row = connection.execute(_PROGRESS, (migration,)).fetchone()
        assert row is not None
        return row[0], row[1], row[2]

    def patiently(self, what: str, *processes: Guarded) -> Iterator[None]:
        """Yield a few times a second until the caller stops; raises if a process ends or time runs out."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            yield
            for process in processes or self._running:
                if process in self._running and process.poll() is not None:
                    raise HeadraceError(f"a process of {what} exited: {process.last_lines()}")
            time.sleep(0.2)
        raise HeadraceError(f"{what} did not finish within {_PATIENCE:.0f} s")

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Print `what` and its duration when it is done."""
        began = time.monotonic()
        yield
        self.console.print(f"{what} ({time.monotonic() - began:.1f} s)")

    def _words(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "headrace", *words, "--config", str(self._settings)]


def count(connection: Connection, query: str, *parameters: object) -> int:
    """Return the single number that a query returns."""
    row = connection.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return int(row[0])
