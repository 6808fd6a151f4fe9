"""Runs git in steps: every command is a generator that yields until git has ended.

Only headrace's configuration takes effect: not the machine's, the user's, the environment's, nor the repository's own,
since git is given a view of it (views.py). Git never prompts, runs no hooks and uses no transport. Closing a generator
kills its process.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Final, TypeVar

from consumers.contract.external import Pace
from schemas.errors import HeadraceError

T = TypeVar("T")
Steps = Generator[Pace, None, T]
"""An operation in steps: it yields while it waits, and returns its result."""

_CONFIGURED: Final = tuple(
    part
    for setting in (
        "core.hooksPath=/dev/null",
        "core.fsmonitor=false",
        "gc.auto=0",
        "maintenance.auto=false",
        "receive.autogc=false",
        "protocol.allow=never",
        "core.fsync=all",
        "core.logAllRefUpdates=false",
    )
    for part in ("-c", setting)
)
_TURN_SECONDS: Final = 0.05
_NO_ROOM: Final = re.compile(rb"No space left on device|Disk quota exceeded|Read-only file system")


class GitFailed(HeadraceError):
    """Fix the reported cause; the repository stays where it is."""


class NoRoom(HeadraceError):
    """Free space there, then start the consumer again: nothing is lost."""


Owner = tuple[int, int]
"""A user's and a group's number."""


@dataclass(frozen=True, slots=True)
class View:
    """A directory that git treats as a repository, and the user that git runs as, None for this process's user."""

    path: Path
    owner: Owner | None

    def close(self) -> None:
        """Remove it; the targets of its links stay."""
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Ended:
    """A command's exit code and output."""

    code: int
    said: bytes
    complained: bytes


def git(
    *arguments: str,
    at: View | None = None,
    given: bytes | IO[bytes] = b"",
    into: IO[bytes] | None = None,
    seconds: float = 3600.0,
) -> Steps[bytes]:
    """Run git in a view and return its output, or write it `into` a file.

    Raises GitFailed with git's last line if it fails or takes too long, and NoRoom if the disk is full.
    """
    ended = yield from asked(*arguments, at=at, given=given, into=into, seconds=seconds)
    if ended.code != 0:
        raise failure("git", ended)
    return ended.said


def asked(
    *arguments: str,
    at: View | None = None,
    given: bytes | IO[bytes] = b"",
    into: IO[bytes] | None = None,
    seconds: float = 3600.0,
) -> Steps[Ended]:
    """Run git, with any exit code; see `git`."""
    where = [f"--git-dir={at.path if at is not None else os.devnull}"]
    owner = at.owner if at is not None else None
    command = ("git", *_CONFIGURED, *where, *arguments)
    return (yield from run(*command, given=given, into=into, owner=owner, seconds=seconds))


def remove(path: Path) -> Steps[None]:
    """Delete a directory recursively; a missing one is no error."""
    ended = yield from run("rm", "-rf", "--", str(path), seconds=3600.0)
    if ended.code != 0:
        # The owner of a read-only directory can delete its content after making it writable.
        yield from run("chmod", "-R", "u+rwX", "--", str(path), seconds=3600.0)
        ended = yield from run("rm", "-rf", "--", str(path), seconds=3600.0)
    if ended.code != 0:
        raise failure("rm", ended)


def run(
    *command: str,
    given: bytes | IO[bytes] = b"",
    into: IO[bytes] | None = None,
    owner: Owner | None = None,
    seconds: float,
) -> Steps[Ended]:
    """Run a command in its own process group. Raises GitFailed if it takes too long."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained, tempfile.TemporaryFile() as fed:
        if isinstance(given, bytes):
            fed.write(given)
            fed.seek(0)
        process = subprocess.Popen(
            [*_tied(), *command],
            stdin=fed if isinstance(given, bytes) else given,
            stdout=said if into is None else into,
            stderr=complained,
            cwd="/",
            env=_environment(),
            start_new_session=True,
            user=owner[0] if owner is not None else None,
            group=owner[1] if owner is not None else None,
            extra_groups=() if owner is not None else None,
        )
        deadline = time.monotonic() + seconds
        try:
            while (code := _ended(process)) is None:
                if time.monotonic() > deadline:
                    raise GitFailed(f"{command[0]} did not end within {seconds:.0f} s")
                yield Pace.BUSY
        finally:
            _kill(process)
        said.seek(0)
        complained.seek(0)
        return Ended(code, said.read(), complained.read())


def failure(program: str, ended: Ended) -> HeadraceError:
    """Return the error of a failed command, with the last line of its output."""
    # Items that git lists are on lines of their own.
    lines = ended.complained.decode("utf-8", "replace").replace(":\n\t", ": ").split("\n")
    words = [line.strip() for line in lines if line.startswith(("fatal:", "error:"))] or [
        line.strip() for line in lines if line.strip()
    ]
    said = words[-1] if words else f"it exited with code {ended.code} and no output"
    kind = NoRoom if _NO_ROOM.search(ended.complained) else GitFailed
    return kind(f"{program}: {said[:500]}")


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    """Wait one turn for the process to end; return its exit code once it has."""
    if sys.platform == "linux":
        # Python's own wait polls, and takes up to 50 ms too long; most commands take five.
        handle = os.pidfd_open(process.pid)
        try:
            poller = select.poll()
            poller.register(handle, select.POLLIN)
            poller.poll(_TURN_SECONDS * 1000)
        finally:
            os.close(handle)
        return process.poll()
    try:
        return process.wait(_TURN_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the rest of the process group: git's helpers outlive a killed git."""
    if process.returncode == 0:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@cache
def _tied() -> tuple[str, ...]:
    """Return the command prefix that ends a command with this process, even on SIGKILL, if the system has one."""
    found = shutil.which("setpriv")
    return (found, "--pdeathsig", "KILL", "--") if found else ()


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    return {
        **kept,
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "",
    }
