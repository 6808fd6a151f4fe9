"""headrace's commands as processes forked from one that has everything imported: they start within milliseconds.

Each is a separate process with the command line that a user types, and reacts to signals like one started from a
shell.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import connection
from pathlib import Path
from typing import Any, Final

from consumers.testing.waiting import PATIENCE

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["tests.preloaded", "tests.chaos.forked", "tests.chaos.__main__", "confluent_kafka.admin"]
)
_LOOK_SECONDS: Final = 0.002
_SESSION_MS: Final = 2_000
_RESTART_SECONDS: Final = 0.3


def _become(
    arguments: tuple[str, ...],
    output: str,
    errors: str,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    """Run the command in the forked process."""
    for path, number in ((output, 1), (errors, 2)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(os.devnull)  # noqa: SIM115  # for as long as the process lives
    os.environ.update(environment)
    if prepare is not None:
        prepare()
    sys.argv = ["headrace", *arguments]
    # Already imported by the fork server.
    import consumers.delivery.group  # noqa: PLC0415
    import headrace  # noqa: PLC0415

    # A killed consumer keeps its partitions until then; after many kills several such timeouts add up.
    vars(consumers.delivery.group)["SESSION_TIMEOUT_MS"] = _SESSION_MS
    headrace.main()


class Command:
    """A running headrace command; its standard output and error go to two files of its own."""

    _made = 0

    def __init__(
        self,
        directory: Path,
        arguments: tuple[str, ...],
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """`prepare` is called first in the new process; it has to be a module-level function or a partial of one."""
        Command._made += 1
        self.arguments = arguments
        words = "-".join(word for word in arguments[:3] if not word.startswith(("-", "/")))
        place = directory / f"{Command._made:05}-{words}"
        self._output, self._errors = place.with_suffix(".out"), place.with_suffix(".err")
        for file in (self._output, self._errors):
            file.touch()
        self._process = _FORKS.Process(
            target=_become,
            args=(arguments, str(self._output), str(self._errors), dict(environment or {}), prepare),
            daemon=True,
        )
        self.began = time.monotonic()
        self._process.start()
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, minus the signal number if killed, None while it runs."""
        with self._lock:
            return self._process.exitcode

    def wait(self, seconds: float = PATIENCE) -> int | None:
        """Return the exit code once it has ended, None on timeout."""
        connection.wait([self._process.sentinel], seconds)
        return self.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal if the process still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait_until_logged(self, text: str, seconds: float) -> None:
        """Wait until its log contains a text, or the process has ended."""
        deadline = time.monotonic() + seconds
        while text not in self.errors and self.poll() is None and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def errors(self) -> str:
        return self._errors.read_text(errors="replace")

    @property
    def message(self) -> str:
        """The last line on standard error."""
        return next((line for line in reversed(self.errors.splitlines()) if line.strip()), "")

    def json(self) -> Any:
        return json.loads(self.output)


class Service:
    """A command that is restarted whenever it ends, as by a service manager."""

    def __init__(self, directory: Path, *arguments: str, prepare: Callable[[], None] | None = None) -> None:
        self.arguments = arguments
        self.ends: list[tuple[float, int | None, str]] = []
        """For each process that ended: the time, its exit code, and its last line."""
        self._directory = directory
        self._prepare = prepare
        self._stop = threading.Event()
        self._starting = threading.Lock()
        self._command: Command | None = None
        self._thread = threading.Thread(target=self._run, name=" ".join(arguments[:2]), daemon=True)
        self._thread.start()

    @property
    def command(self) -> Command | None:
        """The current process, or the last one."""
        return self._command

    def kill(self) -> None:
        """Kill the process; it is restarted."""
        if self._command is not None:
            self._command.send(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the process, and do not restart it."""
        with self._starting:  # so that no process is started after the one stopped here
            self._stop.set()
        if self._command is not None:
            self._command.send(signal.SIGTERM)
            if self._command.wait(30.0) is None:
                self.kill()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while True:
            with self._starting:
                if self._stop.is_set():
                    return
                self._command = Command(self._directory, self.arguments, prepare=self._prepare)
            while (code := self._command.wait()) is None:
                pass
            self.ends.append((time.time(), code, self._command.message))
            self._stop.wait(_RESTART_SECONDS)
