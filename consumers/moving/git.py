"""Running git without waiting for it: every command is a generator that gives control back until git has ended.

Nothing of the machine's or the user's git configuration takes part, git never asks anybody anything, runs no hook and
talks to no network. Closing a generator kills what it started.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

from consumers.outside import Pace
from schemas.errors import HeadraceError

T = TypeVar("T")
Steps = Generator[Pace, None, T]
"""Something done in steps: it yields while it waits, and returns its result."""

UPLOAD_PACK: Final = "git -c 'safe.directory=*' -c 'transfer.hideRefs=!refs' -c 'uploadpack.hideRefs=!refs' upload-pack"
"""How the other side of a copy is started: git takes it from the shell, and gives it no configuration of ours. All
refs are shown, and a repository may be another user's."""

_CONFIGURED: Final = tuple(
    part
    for setting in (
        "core.hooksPath=/dev/null",
        "core.fsmonitor=false",
        "gc.auto=0",
        "maintenance.auto=false",
        "receive.autogc=false",
        "protocol.allow=never",
        "protocol.file.allow=always",
        "core.fsync=all",
        "advice.detachedHead=false",
        "init.defaultBranch=main",
    )
    for part in ("-c", setting)
)
_TURN_SECONDS: Final = 0.05
_NO_ROOM: Final = re.compile(rb"No space left on device|Disk quota exceeded|Read-only file system")


class GitFailed(HeadraceError):
    """See the reason; the repository stays where it is."""


class NoRoom(HeadraceError):
    """Free space there, then start again: nothing is lost."""


def git(
    *arguments: str, at: Path | None = None, given: bytes = b"", accept: Sequence[int] = (0,), seconds: float = 3600.0
) -> Steps[bytes]:
    """Run git in repository `at` and return what it printed.

    Raises GitFailed with git's last words when it ends with another code than those accepted or takes too long, and
    NoRoom when the disk is full.
    """
    where = [f"--git-dir={at}"] if at is not None else []
    return (yield from run("git", *_CONFIGURED, *where, *arguments, given=given, accept=accept, seconds=seconds))


def remove(path: Path) -> Steps[None]:
    """Delete a directory with all that is in it; one that is not there is no error."""
    yield from run("rm", "-rf", "--", str(path), seconds=3600.0)


def run(*command: str, given: bytes = b"", accept: Sequence[int] = (0,), seconds: float) -> Steps[bytes]:
    """Run a command in a process group of its own; see `git`."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained, tempfile.TemporaryFile() as fed:
        fed.write(given)
        fed.seek(0)
        process = subprocess.Popen(
            [*_tied(), *command],
            stdin=fed,
            stdout=said,
            stderr=complained,
            env=_environment(),
            start_new_session=True,
        )
        deadline = time.monotonic() + seconds
        try:
            while (code := _ended(process)) is None:
                if time.monotonic() > deadline:
                    raise GitFailed(f"{command[0]} did not end within {seconds:.0f} s")
                yield Pace.BUSY
        finally:
            _kill(process)
        if code not in accept:
            complained.seek(0)
            raise _failure(command[0], code, complained.read())
        said.seek(0)
        return said.read()


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    """Wait a turn for the process to end; return its code once it has."""
    if hasattr(os, "pidfd_open"):
        # Python's own waiting looks now and then, for up to 50 ms too long, where most commands take five.
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
    """End whatever of the group is left: git's helpers outlive a git that was killed."""
    if process.returncode == 0:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failure(program: str, code: int, complaint: bytes) -> HeadraceError:
    lines = complaint.decode("utf-8", "replace").split("\n")
    words = [line.strip() for line in lines if line.startswith(("fatal:", "error:"))] or [
        line.strip() for line in lines if line.strip()
    ]
    said = words[-1] if words else f"it ended with code {code} and said nothing"
    kind = NoRoom if _NO_ROOM.search(complaint) else GitFailed
    return kind(f"{program}: {said[:500]}")


@cache
def _tied() -> tuple[str, ...]:
    """Return what makes a command end with this process, even by SIGKILL, where there is such a thing."""
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
    }
