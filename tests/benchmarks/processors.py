"""Two machines out of one: half of the processors for the database and its application, half for everything else.

Kafka and headrace's processes seldom run where the database does. On a machine that all of them share, what an
application feels is first of all how long it waits for a processor: a kernel that does not preempt lets whoever has
one go on until the next tick, 4 ms later, and that is several times the p99 of a statement.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import psutil  # type: ignore[import-untyped]  # it ships no types

from tests.benchmarks.bench import Bench


class Halves:
    """The processors of the database's machine, and those of headrace's; the same where they cannot be divided."""

    def __init__(self) -> None:
        every = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._divided = len(every) > 1
        self._all = frozenset(every)
        self._database = frozenset(every[: len(every) // 2])
        self._headrace = self._all - self._database

    def for_the_database(self, pid: int) -> None:
        """Let a process, with its threads and children, use the database's half alone."""
        self._keep_to(pid, self._database)

    @contextlib.contextmanager
    def between(self, bench: Bench) -> Iterator[None]:
        """Divide what runs; what the benchmark starts from now on is headrace's, unless it is moved."""
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
