"""Runs SPIN: a model becomes a C program that visits every reachable state, and reports what it found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.models.runs import Run

_DEPTH: Final = 2_000_000
"""Maximum steps of one history. A deeper search is not exhaustive, and is refused."""
_SECONDS: Final = 1800.0
_MEMORY_MB: Final = 6_000
_NOT_EXHAUSTIVE: Final = (
    "max search depth too small",
    "Search not completed",
    "Bit statespace search",
    "out of memory",
)


class SpinMissing(Exception):
    """Install them: apt-get install spin gcc (Debian, Ubuntu), brew install spin (macOS)."""


class NotVerified(Exception):
    """SPIN, the compiler or the search failed; nothing is known of the model."""


@dataclass(frozen=True, slots=True)
class Found:
    """The result of one run's search."""

    states: int
    transitions: int
    depth: int
    seconds: float
    problem: str | None
    """The first violation, or None."""
    steps: int
    """The number of steps that lead to it."""
    exhaustive: bool
    unreached: tuple[str, ...]
    """Statements that no history reaches, as file:line."""


def require_tools() -> None:
    """Raise SpinMissing unless SPIN and a C compiler can be run."""
    missing = [name for name, path in (("spin", shutil.which("spin")), ("a C compiler", _compiler())) if path is None]
    if missing:
        raise SpinMissing(f"{' and '.join(missing)} not found. {SpinMissing.__doc__}")


def verify(run: Run) -> Found:
    """Search all states of a run. Raises SpinMissing, or NotVerified if the search failed."""
    require_tools()
    with tempfile.TemporaryDirectory(prefix="headrace-model-") as name:
        directory = Path(name)
        shutil.copy(run.source, directory)
        rule = (run.without,) if run.without else ()
        _do(directory, "spin", "-a", *(f"-D{each}" for each in (*run.defines, *rule)), run.source.name)
        # Weak fairness counts the processes, eight per byte.
        how = ("-DNFAIR=4",) if run.progress else ("-DSAFETY",)
        compiler = _compiler()
        assert compiler is not None
        _do(
            directory, compiler, "-O2", "-w", "-DCOLLAPSE", f"-DMEMLIM={_MEMORY_MB}", "-DVECTORSZ=2048", *how,
            "-o", "pan", "pan.c",
        )  # fmt: skip
        began = time.monotonic()
        # Without a rule, the search is for a wrong state, not for a process that waits forever.
        search = ("-a", "-f") if run.progress else ("-E",) if run.without else ()
        report = _do(directory, "./pan", f"-m{_DEPTH}", *search)
    return read_report(report, time.monotonic() - began)


def read_report(report: str, seconds: float) -> Found:
    """Return the contents of a verifier's report. Raises NotVerified if it is not a report."""
    errors, states = re.search(r"errors: (\d+)", report), re.search(r"(\d+) states, stored", report)
    transitions, depth = re.search(r"(\d+) transitions", report), re.search(r"depth reached (\d+)", report)
    if errors is None or states is None or transitions is None or depth is None:
        raise NotVerified(f"the verifier ended without a report: {report[-500:]}")
    problem = re.search(r"^pan:1: (.*?)(?: \(at depth (\d+)\))?$", report, re.MULTILINE)
    if int(errors[1]) and problem is None:
        raise NotVerified(f"the verifier found a violation but did not name it: {report[-500:]}")
    unreached = [
        f"{match[1]}:{match[2]}"
        for match in re.finditer(r"^\t(\S+):(\d+), state \d+, \"(.*)\"$", report, re.MULTILINE)
        if match[3] != "-end-"
    ]
    return Found(
        states=int(states[1]),
        transitions=int(transitions[1]),
        depth=int(depth[1]),
        seconds=seconds,
        problem=problem[1] if problem and int(errors[1]) else None,
        steps=int(problem[2] or 0) if problem else 0,
        exhaustive=not any(each in report for each in _NOT_EXHAUSTIVE),
        unreached=tuple(dict.fromkeys(unreached)),
    )


def _compiler() -> str | None:
    return next((path for name in (os.environ.get("CC", "cc"), "gcc", "clang") if (path := shutil.which(name))), None)


def _do(directory: Path, *command: str) -> str:
    try:
        ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise NotVerified(f"{command[0]} took more than {_SECONDS:.0f} seconds") from error
    if ended.returncode != 0:
        raise NotVerified(f"{command[0]} failed: {(ended.stdout + ended.stderr)[-1000:]}")
    return ended.stdout + ended.stderr
