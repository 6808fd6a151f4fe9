"""The parent process of a server: stops it when its owner is gone, however the owner died.

Run as a program, never imported by the code it guards. Two forms:

    python -P guardian.py run '<json>'      start a server in this process's environment and watch it
    python -P guardian.py remove <path>     remove a directory once its owners are gone

Standard input is a pipe whose other end the owner holds: end of file means that the owner is gone, even by SIGKILL,
since the kernel then closes the pipe. The byte `d` means: detach, leaving the server running (or the directory).

`run` prints the server's process id on one line (or `!` and the reason if it did not start), waits for the server and
all its orphans, and exits with the server's exit code (128 + n for signal n). At end of file it sends `stop_signal`,
and after `grace` seconds SIGKILL to the remaining processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
DETACH = b"d"


def adopt_orphans() -> None:
    """Become the parent of the server's orphans (PostgreSQL's, when its postmaster is killed), on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_family() -> None:
    """SIGKILL everything below this process: the server, its children, its orphans."""
    import psutil  # type: ignore[import-untyped]  # noqa: PLC0415  a guard should cost little in normal operation

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def run(spec: dict[str, Any]) -> int:
    adopt_orphans()
    try:
        server = subprocess.Popen(
            spec["argv"],
            cwd=spec["cwd"],
            user=spec["user"],
            group=spec["group"],
            extra_groups=None if spec["user"] is None else [],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
    except OSError as error:
        print(f"!{error.strerror}: {error.filename}", flush=True)
        return 127
    print(server.pid, flush=True)
    ended = threading.Event()
    stopping = threading.Event()

    def stop() -> None:
        if stopping.is_set():
            return
        stopping.set()
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(spec["stop_signal"])
        if not ended.wait(spec["grace"]):
            kill_family()

    def watch_owner() -> None:
        if os.read(0, 1) == DETACH:
            os._exit(0)
        stop()

    threading.Thread(target=watch_owner, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=stop, daemon=True).start())
    code = server.wait()
    with contextlib.suppress(ChildProcessError):
        while True:  # the orphans; only on Linux are they adopted
            os.wait()
    ended.set()
    return code if code >= 0 else 128 - code


def remove(path: str) -> int:
    if os.read(0, 1) != DETACH:
        shutil.rmtree(path, ignore_errors=True)
    return 0


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    sys.exit(run(json.loads(sys.argv[2])) if sys.argv[1] == "run" else remove(sys.argv[2]))
