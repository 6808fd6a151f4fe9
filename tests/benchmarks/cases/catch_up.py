"""Catching up with changes made while the reader was stopped, compared with Debezium and pg_recvlogical.

Half as many changes as the table has rows, each row once, in transactions of 1,000. Each side has its own slot during
the changes, and then they read the same WAL in turn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from schemas.positions import Lsn, format_lsn
from tests.benchmarks.bench import PATIENCE, TABLE, Bench, Site, drop_slot, median, median_or_none
from tests.benchmarks.debezium import Debezium, has_debezium
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.producing import Run, caught_up, copied, cpu_figures, write_position
from tests.benchmarks.receiver import RECEIVER, create_receiver, receiver_command

_UNIT: Final = "changes/s"
_TRANSACTION: Final = 1000


@dataclass(frozen=True, slots=True)
class Round:
    """The same changes read by each side; `receiver` in changes per second."""

    ours: Run
    theirs: Run | None
    receiver: float

    def __str__(self) -> str:
        return f"headrace {self.ours}; Debezium {self.theirs}; pg_recvlogical {self.receiver:,.0f}/s"


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure all sides on the same changes."""
    rounds = catch_up_rounds(bench)
    ours = [each.ours for each in rounds]
    theirs = [each.theirs for each in rounds if each.theirs is not None]
    rate = median(run.rate for run in ours)
    yield Figure(
        "catch_up",
        rate,
        _UNIT,
        peer=median_or_none(run.rate for run in theirs),
        target=Target(at_least=3, ratio=True),
    )
    yield Figure(
        "catch_up, from process start",
        median(run.rate_from_start for run in ours),
        _UNIT,
        peer=median_or_none(run.rate_from_start for run in theirs),
    )
    yield Figure("catch_up, share of pg_recvlogical", rate, _UNIT, peer=median(each.receiver for each in rounds))
    yield from cpu_figures("catch_up", ours, theirs)


def catch_up_rounds(bench: Bench) -> list[Round]:
    """Return the rounds, measured once."""

    def measure() -> list[Round]:
        site = Site(bench, bench.database("changing", bench.rows), "catch_up")
        peer = Debezium(bench, site, "dbz_catch_up", snapshot=False) if has_debezium(bench) else None
        if peer is not None:
            peer.streams_from_here()  # first: what it changes for that is not among the changes to catch up with
        copied(site)
        try:
            return bench.repeated("catching up", lambda number: _round(bench, site, peer, number), str)
        finally:
            site.drop()
            drop_slot(bench, site.dsn, RECEIVER)
            if peer is not None:
                peer.drop()

    return bench.once("catch_up", measure)


def _round(bench: Bench, site: Site, peer: Debezium | None, number: int) -> Round:
    create_receiver(bench, site.dsn)
    changes = bench.rows // 2
    last = _change(bench, site.dsn, changes)
    theirs = None
    # Later readers find more of the WAL in memory: each goes first now and then.
    if peer is not None and number % 2:
        theirs = peer.timed(changes)
    ours = caught_up(site, changes, last)
    if peer is not None and theirs is None:
        theirs = peer.timed(changes)
    receiver = changes / _received(bench, site, last)
    drop_slot(bench, site.dsn, RECEIVER)
    with bench.sql(site.dsn) as connection:
        connection.execute(f"VACUUM {TABLE}")
    return Round(ours, theirs, receiver)


def _change(bench: Bench, dsn: str, changes: int) -> Lsn:
    """Update the first `changes` rows; return a position after all the changes and before the last commit."""
    last = Lsn(0)
    with bench.sql(dsn) as connection:
        for start in range(1, changes + 1, _TRANSACTION):
            with connection.transaction():
                connection.execute(
                    f"UPDATE {TABLE} SET updated_at = clock_timestamp(),"
                    " migration_retries_count = migration_retries_count + 1 WHERE id BETWEEN %s AND %s",
                    (start, min(start + _TRANSACTION - 1, changes)),
                )
                last = write_position(connection)
    return last


def _received(bench: Bench, site: Site, last: Lsn) -> float:
    """Return the seconds that pg_recvlogical takes to write the same changes into a file."""
    target = bench.place / "received"
    publication = site.settings.database("main").publication
    words, env = receiver_command(bench, site.dsn, publication, target, "--endpos", format_lsn(last))
    began = time.monotonic()
    bench.stack.keeper.run(words, log=bench.place / "receiver.log", cwd=bench.place, env=env, timeout=PATIENCE)
    seconds = time.monotonic() - began
    target.unlink()
    return seconds
