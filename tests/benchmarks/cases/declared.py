"""A migration that the settings declare compared with the same one as code: resets of a third of the rows.

Both read the same topic, in turn, and reset the same rows, which are restored in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from schemas.errors import HeadraceError
from tests.benchmarks.bench import TABLE, Bench, Site, median
from tests.benchmarks.cases.resets import UNIT, restore
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.ledger import MIGRATION, Consumed, consumed
from tests.benchmarks.producing import copied

_DECLARED: Final = "declared_resets"
_GUARD: Final = "migration_state = 'import_skipped' AND migration_skipped_reason = 2"
_SECTION: Final = {
    "table": TABLE,
    "where": _GUARD,
    "prefilter": _GUARD,
    "set": {"migration_state": "'default'", "migration_skipped_reason": "NULL"},
}


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure both."""
    site = Site(bench, bench.database("resets", bench.rows), "declared", {_DECLARED: {"declare": _SECTION}})
    restore(bench, site)
    copied(site)
    site.drop_slot()
    ours = bench.repeated("resets as declared", lambda _: _migrated(bench, site, _DECLARED), str)
    coded = bench.repeated("resets as coded", lambda _: _migrated(bench, site, MIGRATION), str)
    yield Figure("declared", _rate(ours), UNIT, peer=_rate(coded), target=Target(at_least=0.9, ratio=True))
    yield Figure("declared, memory", median(run.peak for run in ours), "MB", target=Target(at_most=200), smaller=True)


def _rate(runs: list[Consumed]) -> float:
    """Return the rows that were reset per second; most events are read for nothing."""
    return median(run.rate * run.applied / run.events for run in runs)


def _migrated(bench: Bench, site: Site, migration: str) -> Consumed:
    outcome = consumed(site, bench.rows, migration=migration)
    if outcome.applied != bench.rows // 3:
        raise HeadraceError(f"{migration} reset {outcome.applied} rows, where {bench.rows // 3} should have been")
    restore(bench, site)
    return outcome
