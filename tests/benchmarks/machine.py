"""Resource use of processes: peak memory and processor time, with all their children, and context switches."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types


def peak_megabytes(pid: int) -> float:
    """Return the peak memory (resident set, MB of 10^6 bytes) of a process and its living children.

    Without such a mark in the system, their current memory. 0 if the process has ended.
    """
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += _peak_bytes(one)
    return total / 1e6


def _peak_bytes(process: psutil.Process) -> int:
    try:
        marked = re.search(r"^VmHWM:\s*(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    except OSError:
        marked = None
    return int(marked[1]) * 1024 if marked else int(process.memory_info().rss)


def cpu_seconds(pid: int) -> float:
    """Return the processor time so far of a process, its living children, and those it has waited for."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        own = process.cpu_times()
        total = own.user + own.system + own.children_user + own.children_system
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def context_switches(pid: int) -> int:
    """Return how often a process was taken off its processor so far, because it waited or another one's turn came."""
    switches = psutil.Process(pid).num_ctx_switches()
    return int(switches.voluntary + switches.involuntary)


@dataclass(slots=True)
class Meter:
    """Processor time of several processes since the meter was started."""

    pids: Mapping[str, int]
    _at_start: Mapping[str, float]

    @classmethod
    def started(cls, pids: Mapping[str, int]) -> Meter:
        """Start a meter for running processes, by name."""
        return cls(dict(pids), {name: cpu_seconds(pid) for name, pid in pids.items()})

    def read(self) -> dict[str, float]:
        """Return seconds of processor time by name; the processes must still run."""
        return {name: cpu_seconds(pid) - self._at_start[name] for name, pid in self.pids.items()}
