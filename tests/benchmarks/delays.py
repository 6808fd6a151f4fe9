"""From commit to a read-committed consumer: the delay of every change of a load.

The commit time is PostgreSQL's own, which headrace and Debezium both carry as `source.ts_ms`; the arrival time is when
a consumer in this process has the record. Both are precise to at least a millisecond, of the same machine's clock; the
commit's is rounded down, which adds half a millisecond on both sides.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from confluent_kafka import OFFSET_END

from infra.kafka import clients
from infra.settings.model import KafkaSettings
from infra.stack.processes.keeper import Guarded
from schemas.codec.header import HeaderReader
from schemas.errors import HeadraceError
from tests.benchmarks.watching import partitions_of

_QUIET_SECONDS: Final = 30.0
"""Seconds without a record after which the rest counts as lost."""

_DEBEZIUM_CLOCK: Final = re.compile(rb'"source":\{[^}]*?"ts_ms":(\d+)')

Clock = Callable[[bytes], int]
"""A record's value → its change's commit time, in milliseconds since the epoch."""

Delay = tuple[float, float]
"""When a change was committed, in seconds since the load was started, and the milliseconds until it arrived."""


def headrace_clock() -> Clock:
    """Return the clock of headrace's records."""
    reader = HeaderReader()
    return lambda value: reader.prefix(value).ts_ms


def debezium_clock(value: bytes) -> int:
    """Return the commit time in one of Debezium's records."""
    found = _DEBEZIUM_CLOCK.search(value)
    if found is None:
        raise HeadraceError("a record of Debezium without source.ts_ms")
    return int(found[1])


class Follower:
    """Reads topics from their current ends; create it before the load is started."""

    def __init__(self, settings: KafkaSettings, topics: Sequence[str], clock: Clock) -> None:
        self._clock = clock
        self._consumer = clients.consumer(settings, "bench-delays", fetch_wait_max_ms=10)
        self._consumer.assign(partitions_of(self._consumer, topics, OFFSET_END))
        while self._consumer.poll(0.5) is not None:  # until it is at the ends
            pass
        self._begun = time.time() * 1000

    def follow(self, load: Guarded, changes: Callable[[], int], reader: Guarded) -> list[Delay]:
        """Return the delays of all changes that the running `load` makes: as many as `changes` returns once it ended.

        Raises HeadraceError if the reader ends, or if no change arrives any more.
        """
        taken: list[Delay] = []
        made: int | None = None
        last = time.monotonic()
        try:
            while made is None or len(taken) < made:
                message = self._consumer.poll(0.1)
                now = time.time() * 1000
                if message is not None and message.error() is None:
                    value = message.value()
                    if value is not None:
                        commit = self._clock(value)
                        taken.append(((commit - self._begun) / 1000, now - commit))
                        last = time.monotonic()
                        continue
                if made is None and load.poll() is not None:
                    made = changes()
                if reader.poll() is not None:
                    raise HeadraceError(f"the reader ended: {reader.last_lines()}", remedy="")
                if time.monotonic() > last + _QUIET_SECONDS:
                    raise HeadraceError(f"{len(taken)} changes arrived; written: {made or 'still writing'}")
        finally:
            load.kill()
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()


def within(delays: Sequence[Delay], begin: float, end: float = float("inf")) -> list[float]:
    """Return the milliseconds, in order, of the changes committed from `begin` to `end`, in seconds of the load.

    Raises HeadraceError if there are none.
    """
    found = sorted(delay for commit, delay in delays if begin < commit <= end)
    if not found:
        raise HeadraceError(f"no change was written after {begin:g} s", remedy="this machine is too busy")
    return found


def percentile(ordered: Sequence[float], share: int) -> float:
    """Return the value below which `share` percent of them are."""
    return ordered[len(ordered) * share // 100]
