"""Runs of `headrace produce` as a separate process, timed by what it commits to Kafka."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from pydantic import BaseModel

from infra.stack.processes.keeper import Guarded
from infra.state.positions import SnapshotState, StreamState
from schemas.errors import HeadraceError
from schemas.positions import Lsn
from tests.benchmarks.bench import Bench, Site, median_or_none
from tests.benchmarks.figures import Figure, displayed
from tests.benchmarks.machine import Meter, peak_megabytes
from tests.benchmarks.watching import CopiedTables, EndWatch, PositionsWatch, committed_records

_STOP_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a producer; all in seconds but `peak`, which is in MB.

    `from_start` begins when the process is started. `seconds` begins with the record with which the producer claims its
    source, committed before it opens the stream and reads anything. Both end when a read-committed consumer has the
    final position, which is in one transaction with the last events. `cpu` is processor time from the process's start,
    by process.
    """

    events: int
    seconds: float
    from_start: float
    peak: float
    cpu: dict[str, float]

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds

    @property
    def rate_from_start(self) -> float:
        """Events per second, including the start of the process."""
        return self.events / self.from_start

    def __str__(self) -> str:
        million = self.events / 1e6
        cpu = ", ".join(f"{name} {displayed(seconds / million)}" for name, seconds in self.cpu.items())
        return (
            f"{displayed(self.rate)}/s ({displayed(self.rate_from_start)}/s from process start),"
            f" peak {self.peak:.0f} MB, processor seconds per million: {cpu}"
        )


def cpu_figures(name: str, ours: Sequence[Run], theirs: Sequence[Run]) -> Iterator[Figure]:
    """Yield the processor seconds per million events of the reader (theirs is Debezium) and of each server."""

    def cost(runs: Sequence[Run], who: str) -> float | None:
        return median_or_none(run.cpu[who] / run.events * 1e6 for run in runs)

    for who in ours[0].cpu:
        peer = cost(theirs, "Debezium" if who == "producer" else who)
        value = cost(ours, who)
        assert value is not None
        yield Figure(f"{name}, CPU of {who}", value, "s/million", peer=peer, smaller=True)


@contextlib.contextmanager
def producing(site: Site) -> Iterator[Guarded]:
    """Run a producer that is stopped in order at the end."""
    process = site.bench.start(f"produce-{site.prefix}", site.command("produce", "main"))
    try:
        yield process
    finally:
        process.stop(signal.SIGTERM, _STOP_SECONDS)


def copied(site: Site) -> Run:
    """Run a producer until it has copied all tables of the site, which are new to it."""
    tables = CopiedTables(len(site.topics))
    timed = _timed(site, SnapshotState, tables.complete)
    return Run(sum(tables.rows.values()), *timed)


def caught_up(site: Site, events: int, last: Lsn) -> Run:
    """Run a stopped producer until it has fully published the transaction that ends after `last`.

    Raises HeadraceError unless exactly `events` records were added to the site's topics meanwhile.
    """

    def ends(record: BaseModel) -> bool:
        return isinstance(record, StreamState) and record.confirmed_lsn > last

    begin = EndWatch(site.settings.kafka, site.topics).ends()
    timed = _timed(site, StreamState, ends)
    if (come := committed_records(site.settings.kafka, begin)) != events:
        raise HeadraceError(f"{come} changes were published, but {events} were made")
    return Run(events, *timed)


def _timed(
    site: Site, first: type[BaseModel], ends: Callable[[BaseModel], bool]
) -> tuple[float, float, float, dict[str, float]]:
    """Run a producer from its claim, a record of class `first`, to the record that `ends` it."""
    with PositionsWatch(site) as watch:
        of_servers = Meter.started(servers(site.bench))
        started = time.monotonic()
        with producing(site) as process:
            own = Meter.started({"producer": process.pid})
            began = watch.until(lambda record: isinstance(record, first), process)
            ended = watch.until(ends, process)
            return ended - began, ended - started, peak_megabytes(process.pid), own.read() | of_servers.read()


def servers(bench: Bench) -> dict[str, int]:
    """Return the process ids of the servers, by name."""
    return {"PostgreSQL": bench.stack.postgres.process.pid, "Kafka": bench.stack.kafka.brokers[1].process.pid}


def write_position(connection: psycopg.Connection[Any]) -> Lsn:
    """Return the current WAL write position."""
    row = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint").fetchone()
    assert row is not None
    return Lsn(row[0])
