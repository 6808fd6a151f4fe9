"""Several consumers of a migration compared with one, where they do not wait for each other's processors.

Two behind a network of 5 ms: with transactions of 500 rows each waits for the database most of the time; with the
usual ones of 2,500 two have more to do than two processors can. Ten on this machine: what counts is the processor time
of an event, in the consumers and both servers, since they share the processors.

Not measured is what comes before each consumer has its partitions, which takes rounds of seconds in Kafka's group. The
rate of two is without what is done before each has done something: they notice one after the other, within a second,
that they are resumed. The processor time is from the resume on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from consumers.pace.pacing import SHARES
from infra.settings.model import MigrationSettings
from schemas.errors import HeadraceError
from tests.benchmarks.bench import Bench, Site, median
from tests.benchmarks.cases.resets import UNIT, restore
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.ledger import MIGRATION, Consumed, consumed, consumed_together
from tests.benchmarks.link import linked
from tests.benchmarks.producing import copied

_SECONDS: Final = 0.005
_UNLIMITED: Final = 1e12
_WAITING: Final = 2_000
"""Events read at a time: a transaction has a quarter of them at most."""
_MANY: Final = 10
_PARTITIONS: Final = 20
_TIMES: Final = 8
"""Times the rows of other benchmarks: ten consumers do not notice at the same moment that they are resumed, and what
they do once, such as opening sessions, is not what an event costs."""


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure one and several consumers in turn; the peer is the single one."""
    for batch_size, runs in _behind_a_network(bench).items():
        one, two = zip(*runs, strict=True)
        yield Figure(
            f"resets 5 ms away, {batch_size // SHARES:,} in a transaction, two consumers compared with one",
            median(run.rate * run.applied / run.events for run in two),
            UNIT,
            peer=median(run.rate * run.applied / run.events for run in one),
            target=Target(at_least=1.8, ratio=True) if batch_size == _WAITING else None,
        )
    one, ten = zip(*_sharing_processors(bench), strict=True)
    yield Figure(
        "replay by ten consumers, processor time compared with one",
        median(run.cpu / run.events * 1e6 for run in ten),
        "s/million",
        peer=median(run.cpu / run.events * 1e6 for run in one),
        smaller=True,
        target=Target(at_least=0.95, ratio=True),
    )


def _behind_a_network(bench: Bench) -> dict[int, list[tuple[Consumed, Consumed]]]:
    rows = max(3_000, bench.rows * 2)
    dsn = bench.database("members", rows)
    near = Site(bench, dsn, "members")
    restore(bench, near)
    copied(near)
    near.drop_slot()

    def reset(site: Site, count: int) -> Consumed:
        outcome = consumed_together(site, rows, count)
        if outcome.applied != rows // 3:
            raise HeadraceError(f"{outcome.applied} rows were reset, where {rows // 3} should have been")
        restore(bench, near)
        return outcome

    def pair(batch_size: int, _: int) -> tuple[Consumed, Consumed]:
        with linked(dsn, bytes_per_second=_UNLIMITED, seconds=_SECONDS) as over:
            far = Site(bench, over, "members", {MIGRATION: {"batch_size": batch_size}})
            return reset(far, 1), reset(far, 2)

    consumed(near, rows)
    restore(bench, near)
    usual: int = MigrationSettings().batch_size
    name = "resets in a database 5 ms away by one and two consumers, batches of"
    return {size: bench.repeated(f"{name} {size:,} events", partial(pair, size), _both) for size in (_WAITING, usual)}


def _sharing_processors(bench: Bench) -> list[tuple[Consumed, Consumed]]:
    rows = bench.rows * _TIMES
    site = Site(bench, bench.database("many_members", rows), "many", partitions=_PARTITIONS)
    copied(site)
    site.drop_slot()
    consumed(site, rows)

    def pair(_: int) -> tuple[Consumed, Consumed]:
        return consumed_together(site, rows, 1), consumed_together(site, rows, _MANY)

    return bench.repeated(f"replay by one and {_MANY} consumers", pair, _both)


def _both(runs: tuple[Consumed, Consumed]) -> str:
    return "; ".join(map(str, runs))
