"""Runs of `headrace consume` as separate processes, timed by the ledger in the target database."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from consumers.operations.group_admin import members
from infra.stack.processes.keeper import Guarded
from schemas.errors import HeadraceError
from schemas.topics import group_name
from tests.benchmarks.bench import PATIENCE, Site
from tests.benchmarks.machine import Meter, peak_megabytes
from tests.benchmarks.producing import servers

MIGRATION: Final = "skip_resets"

PROGRESS: Final = """
SELECT coalesce(sum(p.applied + p.skipped), 0)::bigint, coalesce(sum(p.applied), 0)::bigint,
       count(DISTINCT p.member) FILTER (WHERE p.applied + p.skipped > 0)
FROM headrace.progress p JOIN headrace.migrations m ON m.name = p.migration AND m.run = p.run
WHERE m.name = %s
"""
"""The events that are done of a migration's run, how many of them were applied, and how many consumers did some."""
_SHARES: Final = """
SELECT count(*) = %(count)s AND max(places) - min(places) <= 1
FROM (SELECT count(*) AS places
      FROM headrace.progress p JOIN headrace.migrations m ON m.name = p.migration AND m.run = p.run
      WHERE m.name = %(migration)s GROUP BY p.member) AS shares
"""
"""Whether each of `count` consumers has its share of the partitions in a migration's run."""
_WATCH_SECONDS: Final = 0.1
"""How often several consumers' progress is read: more often would take the processors from them."""
_STOP_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Consumed:
    """The work of consumers up to the end of a topic.

    `rate` is in events per second from the moment when each consumer has progress in the ledger to the last progress,
    without what was done before; `seconds` begins with the processes' start, or with their resume. `peak` is the
    highest peak memory of one, in MB. `ended` is when the last progress was seen, in seconds of the monotonic clock.
    `cpu` is the processor time, in seconds, of all consumers and both servers in `seconds`.
    """

    events: int
    applied: int
    rate: float
    seconds: float
    peak: float
    ended: float
    cpu: float

    def __str__(self) -> str:
        return (
            f"{self.rate:,.0f} events/s, {self.applied:,} applied, {self.seconds:.1f} s in all,"
            f" peak {self.peak:.0f} MB,"
            f" {self.cpu / self.events * 1e6:.1f} processor seconds per million"
        )


def consumed(site: Site, events: int, every: float = 0.02, *, migration: str = MIGRATION) -> Consumed:
    """Run a consumer from the topic's beginning until `events` are done.

    The ledger is queried every `every` seconds, which is work too.
    """
    replay_if_run(site, migration)
    began = time.monotonic()
    with _consuming(site, migration, 1) as processes:
        return _watched(site, migration, processes, _meter(site, processes), events, began, every)


def consumed_together(site: Site, events: int, count: int, *, migration: str = MIGRATION) -> Consumed:
    """Run `count` consumers, paused until each has its partitions: their work is measured without their start.

    The group moves partitions in two rounds, each of up to two seconds. A consumer of the migration has run before.
    """
    replay_if_run(site, migration)
    _run_command(site, "pause", migration)
    with _consuming(site, migration, count) as processes:
        with site.bench.sql(site.dsn) as connection:
            for _ in site.bench.watched("the consumers", *processes, every=_WATCH_SECONDS):
                if connection.execute(_SHARES, {"count": count, "migration": migration}).fetchone() == (True,):
                    break
        meter = _meter(site, processes)
        began = time.monotonic()
        _run_command(site, "resume", migration)
        return _watched(site, migration, processes, meter, events, began, _WATCH_SECONDS)


@contextlib.contextmanager
def _consuming(site: Site, migration: str, count: int) -> Iterator[list[Guarded]]:
    processes: list[Guarded] = []
    try:
        for number in range(count):
            name = f"consume-{site.prefix}-{number}"
            processes.append(site.bench.start(name, site.command("consume", migration)))
        yield processes
    finally:
        for process in processes:
            process.stop(signal.SIGTERM, _STOP_SECONDS)


def _meter(site: Site, processes: list[Guarded]) -> Meter:
    return Meter.started({**servers(site.bench), **{str(each.pid): each.pid for each in processes}})


def _watched(
    site: Site, migration: str, processes: list[Guarded], meter: Meter, events: int, began: float, every: float
) -> Consumed:
    first: tuple[float, int] | None = None
    peak = 0.0
    with site.bench.sql(site.dsn) as connection:
        for _ in site.bench.watched("a consumer", *processes, every=every):
            if connection.execute("SELECT to_regclass('headrace.progress')").fetchone() == (None,):
                continue
            row = connection.execute(PROGRESS, (migration,)).fetchone()
            assert row is not None
            done, applied, consumers = row
            peak = max(peak, *(peak_megabytes(process.pid) for process in processes))
            now = time.monotonic()
            if first is None and (consumers == len(processes) or done >= events):
                first = now, done
            if first is not None and done >= events:
                seconds = now - first[0] if done > first[1] else now - began
                counted = done - first[1] if done > first[1] else done
                cpu = sum(meter.read().values())
                return Consumed(done, applied, counted / seconds, now - began, peak, now, cpu)
    raise HeadraceError("the consumers did not reach the end", remedy="try fewer --rows")


def replay_if_run(site: Site, migration: str = MIGRATION) -> None:
    """Have the next consumer read from the topic's beginning, if one ran before."""
    if _has_run(site, migration):
        # One that had no time to leave the group is still a member of it for a while.
        group = group_name(site.prefix, migration)
        for _ in site.bench.watched("consumers that were stopped", every=_WATCH_SECONDS):
            if not members(site.settings.kafka, group):
                break
        _run_command(site, "replay", migration)


def _has_run(site: Site, migration: str) -> bool:
    with site.bench.sql(site.dsn) as connection:
        if connection.execute("SELECT to_regclass('headrace.migrations')").fetchone() == (None,):
            return False
        found = connection.execute("SELECT 1 FROM headrace.migrations WHERE name = %s", (migration,)).fetchone()
    return found is not None


def _run_command(site: Site, *words: str) -> None:
    log = site.bench.place / f"{words[0]}-{site.prefix}.log"
    site.bench.stack.keeper.run(site.command(*words), log=log, cwd=site.bench.place, timeout=PATIENCE)
