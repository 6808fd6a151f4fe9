"""Measures the processor time of each command's help, and of its start until it asks a server, the most memory that a
start takes, and how soon Ctrl-C ends it while that server says nothing.

The peer of a help is an interpreter that imports typer and pydantic, and that of a start one that imports psycopg, too;
both in the same run. The times are the least of several runs, which others can only make longer.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]  # it ships no types

from tests.benchmarks.bench import Bench, median
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.machine import peak_megabytes
from tests.command_tree import paths
from tests.shells import Shell
from tests.waiting_commands import WAITING, configure

_PATIENCE: Final = 60.0
_LIBRARIES: Final = "import typer, pydantic"
_TRIES: Final = 5
"""At least so many runs of each: on a shared machine most of three may be half as long again."""


def figures(bench: Bench) -> Iterator[Figure]:
    """Start each command and interrupt it as soon as it has connected; all are given the same silent server."""
    place = bench.place / "start"
    place.mkdir(exist_ok=True)
    yield from measured(place, bench.runs)


def measured(place: Path, runs: int) -> Iterator[Figure]:
    """Yield the figures, the least times and medians of memory; needs no servers."""
    shell = Shell(place)
    tries = max(runs, _TRIES)
    _ended(shell, "-c", f"import headrace, psycopg; {_LIBRARIES}")  # the first start writes bytecode
    floor = min(_ended(shell, "-c", _LIBRARIES) for _ in range(tries))
    for path in paths():
        seconds = min(_ended(shell, "-m", "headrace", *path, "--help") for _ in range(runs))
        yield Figure(f"start, {' '.join([*path, '--help'])}", seconds, "s", floor, Target(at_most=0.35), smaller=True)
    floor = min(_ended(shell, "-c", f"{_LIBRARIES}, psycopg") for _ in range(tries))
    memory, stops = [], []
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        configure(shell, server.getsockname()[1])
        for words in WAITING:
            found = [_interrupted(shell, server, words) for _ in range(tries)]
            memory.append(median(megabytes for _, megabytes, _ in found))
            stops += [stop for *_, stop in found]
            seconds = min(start for start, *_ in found)
            yield Figure(f"start, {words}", seconds, "s", floor, Target(at_most=0.35), smaller=True)
    yield Figure("start, most memory of one", max(memory), "MB", smaller=True)
    yield Figure("start, slowest end after Ctrl-C", max(stops), "s", target=Target(at_most=1), smaller=True)


def _ended(shell: Shell, *arguments: str) -> float:
    """Return the processor time of an interpreter, from its start to its end, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], cwd=shell.directory, env=shell.environment, capture_output=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _interrupted(shell: Shell, server: socket.socket, words: str) -> tuple[float, float, float]:
    """Return a command's processor seconds and peak memory (MB) at its first connection, and seconds from Ctrl-C on."""
    _forget(server)
    process = shell.start(*words.split())
    accepted, _ = server.accept()
    with accepted:
        used = psutil.Process(process.pid).cpu_times()
        memory = peak_megabytes(process.pid)
        connected = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=_PATIENCE)
        ended = time.monotonic()
    return used.user + used.system, memory, ended - connected


def _forget(server: socket.socket) -> None:
    """Close what an earlier command has connected in the meantime."""
    server.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
    server.settimeout(_PATIENCE)
