"""A producer's peak memory: snapshot, catching up, ten times the rows, one huge transaction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.benchmarks.bench import TABLE, Bench, Site, median, median_or_none
from tests.benchmarks.cases.catch_up import catch_up_rounds
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.producing import Run, caught_up, copied, write_position
from tests.benchmarks.snapshots import snapshot_runs

_LIMIT: Final = Target(at_most=300)
_SAME: Final = Target(at_least=0.8, at_most=1.2)

_HUGE: Final = f"""
INSERT INTO {TABLE} (project_id, name, migration_state)
SELECT 1, 'image-' || i, 'import_done' FROM generate_series(1, %s) i
"""


def figures(bench: Bench) -> Iterator[Figure]:
    """Compare the memory seen by the other benchmarks, and add a transaction of twice the rows."""
    whole = median(run.peak for run in snapshot_runs(bench, bench.rows))
    tenth = median(run.peak for run in snapshot_runs(bench, max(1000, bench.rows // 10)))
    rounds = catch_up_rounds(bench)
    stream = median(each.ours.peak for each in rounds)
    huge = median(run.peak for run in _huge_runs(bench))
    debezium = median_or_none(each.theirs.peak for each in rounds if each.theirs is not None)
    yield Figure("producer memory, snapshot", whole, "MB", target=_LIMIT, smaller=True)
    yield Figure("producer memory, snapshot of 10x the rows", whole / tenth, "x", target=_SAME, smaller=True)
    yield Figure("producer memory, catch_up", stream, "MB", peer=debezium, target=_LIMIT, smaller=True)
    yield Figure("producer memory, one huge transaction", huge, "MB", target=_LIMIT, smaller=True)
    yield Figure(
        "producer memory, huge transaction compared with catch_up", huge / stream, "x", target=_SAME, smaller=True
    )


def _huge_runs(bench: Bench) -> list[Run]:
    """Return runs over one transaction of twice the rows, each with a slot from before it."""
    rows = 10_000
    events = 2 * bench.rows
    sites = [Site(bench, bench.database("huge", rows), f"huge{number}") for number in range(bench.runs)]
    for site in sites:
        copied(site)
    with bench.sql(sites[0].dsn) as connection, connection.transaction():
        connection.execute(_HUGE, (events,))
        last = write_position(connection)
    bench.say(f"one transaction of {events:,} rows written")

    def run(number: int) -> Run:
        outcome = caught_up(sites[number], events, last)
        sites[number].drop()
        return outcome

    return bench.repeated(f"one transaction of {events:,} rows", run, str)
