"""Starts processes that never outlive their owner: each is the child of a guard (guardian.py) that watches a pipe.

A `Keeper` belongs to one owner: it starts guarded processes, and may own a directory that is removed after the last of
them has ended. Two pipes ensure that at any time: the guards read one that only this process holds, and the directory's
guard reads one that this process and every guard hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types

from infra.stack.processes import guardian
from schemas.errors import HeadraceError, Unavailable, UsageError

GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Account:
    """A user to run a server as."""

    name: str
    uid: int
    gid: int


def unprivileged_account() -> Account | None:
    """Return the account to run PostgreSQL as if this process is root, which PostgreSQL refuses; None otherwise.

    Raises UsageError if no suitable account exists.
    """
    if os.geteuid() != 0:
        return None
    for name in ("nobody", "postgres", "daemon"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid != 0:
                return Account(name, entry.pw_uid, entry.pw_gid)
    raise UsageError(
        "PostgreSQL refuses to run as root, and no user nobody, postgres or daemon exists to run it",
        remedy="run headrace as an ordinary user",
    )


@dataclass(frozen=True)
class Identity:
    """Identifies one process: an id may be reused, but not id and start time together."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Return the identity of a running process; raises psutil.NoSuchProcess."""
        return cls(pid, psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """Return the process if it still runs; a zombie does not."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            # psutil reads the start in clock ticks since boot and adds the boot time, which may be off by one tick
            if abs(process.create_time() - self.started) < 0.05 and runs(process):
                return process
        return None


def runs(process: psutil.Process) -> bool:
    """Return whether it runs; a zombie, which may never be reaped in a container, does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_gone(processes: Sequence[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Wait until none runs; return those still running after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while (left := [process for process in processes if runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


class Guarded:
    """A running server, and the guard that is its parent."""

    def __init__(self, watcher: subprocess.Popen[str], pid: int, log: Path) -> None:
        self._guard = watcher
        self.pid = pid
        self.log = log
        try:
            self.identity = Identity.of(pid)
        except psutil.NoSuchProcess:  # it has failed already; poll() reports it
            self.identity = Identity(pid, 0.0)

    def poll(self) -> int | None:
        """Return the exit code (128 + n for signal n) once the server and its orphans have ended."""
        code = self._guard.poll()
        if code is not None:
            self._close_pipes()
        return code

    def wait(self, timeout: float) -> int:
        """Wait for the end; raises subprocess.TimeoutExpired after `timeout` seconds."""
        code = self._guard.wait(timeout)
        self._close_pipes()
        return code

    def children(self) -> list[psutil.Process]:
        """Return the server's current child processes."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = self.identity.find()
            return process.children(recursive=True) if process else []
        return []

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if process := self.identity.find():
                process.send_signal(number)

    def stop(self, number: signal.Signals, timeout: float) -> None:
        """Send a signal, then SIGKILL after `timeout` seconds, and wait for the end."""
        self.send(number)
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL the server, then its children, as in a power failure, and wait for them."""
        family = self.children()
        self.send(signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_gone(family, GRACE_SECONDS)
        self.wait(GRACE_SECONDS)

    def detach(self) -> None:
        """Let the server outlive this process; its guard ends."""
        assert self._guard.stdin is not None
        self._guard.stdin.write(guardian.DETACH.decode())
        self._guard.stdin.flush()
        self._guard.wait(GRACE_SECONDS)
        self._close_pipes()

    def last_lines(self, count: int = 3) -> str:
        """Return the last lines of its log as one line, for an error message."""
        with contextlib.suppress(OSError):
            lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            return " / ".join(lines[-count:])
        return ""

    def _close_pipes(self) -> None:
        for pipe in (self._guard.stdin, self._guard.stdout):
            if pipe is not None:
                pipe.close()


class Keeper:
    """Starts guarded processes for this process, and removes `directory` (if given) after the last has ended."""

    def __init__(self, remove: Path | None = None) -> None:
        self._started: list[Guarded] = []
        self._starting = threading.Lock()
        self._remover: subprocess.Popen[bytes] | None = None
        if remove is not None:
            self._remover = subprocess.Popen(
                [sys.executable, "-P", guardian.__file__, "remove", str(remove)],
                stdin=subprocess.PIPE,
                start_new_session=True,
                cwd="/",
            )

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path,
        account: Account | None = None,
        env: Mapping[str, str] | None = None,
        stop_signal: signal.Signals = signal.SIGKILL,
    ) -> Guarded:
        """Start a server whose output is appended to `log`; `env` is added to this process's environment.

        `stop_signal` is sent to it if this process dies without stopping it. Raises Unavailable if the program cannot
        be executed.
        """
        command = [str(word) for word in argv]
        spec = {
            "argv": command,
            "cwd": str(cwd),
            "user": account.uid if account else None,
            "group": account.gid if account else None,
            "stop_signal": int(stop_signal),
            "grace": GRACE_SECONDS,
        }
        held = () if self._remover is None or self._remover.stdin is None else (self._remover.stdin.fileno(),)
        with log.open("ab") as output:
            watcher = subprocess.Popen(
                [sys.executable, "-P", guardian.__file__, "run", json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env={**os.environ, **(env or {})},  # not in the arguments, which every user sees in ps
                pass_fds=held,  # the directory stays until this guard has ended too
                start_new_session=True,  # the terminal's Ctrl-C goes to the owner, which then stops them in order
                cwd="/",
            )
        assert watcher.stdout is not None
        first = watcher.stdout.readline().strip()
        if not first.isdigit():
            watcher.communicate()
            raise Unavailable(
                f"cannot run {command[0]}: {first.lstrip('!') or 'its guard ended'}",
                remedy="check that the program exists and is executable",
            )
        guarded = Guarded(watcher, int(first), log)
        with self._starting:  # several servers start at once
            self._started = [one for one in self._started if one.poll() is None] + [guarded]
        return guarded

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path,
        account: Account | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 300.0,
    ) -> None:
        """Run a program to completion; raises HeadraceError with the last lines of `log` if it fails."""
        process = self.start(argv, log=log, cwd=cwd, account=account, env=env)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            code = -1
        if code != 0:
            raise HeadraceError(
                f"{Path(str(argv[0])).name} failed: {process.last_lines()}", remedy=f"see its output in {log}"
            )

    def close(self) -> None:
        """Kill the processes that still run, then remove the directory."""
        for guarded in self._started:
            if guarded.poll() is None:
                guarded.kill()
        self._started = []
        if self._remover is not None:
            self._remover.communicate()
            self._remover = None

    def detach(self) -> None:
        """Leave everything running and the directory in place."""
        for guarded in self._started:
            if guarded.poll() is None:
                guarded.detach()
        self._started = []
        if self._remover is not None:
            self._remover.communicate(guardian.DETACH)
            self._remover = None
