"""Splits one machine: half of the processors for the database and its application, half for everything else.

Kafka and headrace's processes seldom run on the database's machine. On a shared machine, an application's latency is
dominated by its wait for a processor: a kernel without preemption lets the running process continue until the next
tick, 4 ms later, which is several times a statement's p99.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import psutil  # type: ignore[import-untyped]  # it ships no types

from tests.benchmarks.bench import Bench


class Halves:
    """The database's processors, and headrace's; the same if they cannot be divided."""

    def __init__(self) -> None:
        every = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._divided = len(every) > 1
        self._all = frozenset(every)
        self._database = frozenset(every[: len(every) // 2])
        self._headrace = self._all - self._database

    def for_the_database(self, pid: int) -> None:
        """Restrict a process, with its threads and children, to the database's half."""
        self._keep_to(pid, self._database)

    @contextlib.contextmanager
    def between(self, bench: Bench) -> Iterator[None]:
        """Divide what runs; processes started from now on are headrace's, unless moved."""
        postgres, kafka = bench.stack.postgres.process.pid, bench.stack.kafka.brokers[1].process.pid
        self._keep_to(postgres, self._database)
        self._keep_to(kafka, self._headrace)
        self._keep_to(os.getpid(), self._headrace, children=False)
        try:
            yield
        finally:
            self._keep_to(os.getpid(), self._all, children=False)
            for pid in (postgres, kafka):
                self._keep_to(pid, self._all)

    def _keep_to(self, pid: int, processors: frozenset[int], *, children: bool = True) -> None:
        if not self._divided:
            return
        process = psutil.Process(pid)
        for one in (process, *(process.children(recursive=True) if children else ())):
            with contextlib.suppress(psutil.NoSuchProcess):
                for thread in one.threads():
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(thread.id, processors)
