"""Replays of a topic in which no row needs a change, measured once for all benchmarks."""

from __future__ import annotations

from tests.benchmarks.bench import Bench
from tests.benchmarks.ledger import Consumed, consumed
from tests.benchmarks.snapshots import snapshot_site


def replay_runs(bench: Bench, rows: int, members: int = 1) -> list[Consumed]:
    """Return all runs of so many consumers over the topic of a snapshot of `rows` rows."""

    def measure() -> list[Consumed]:
        site = snapshot_site(bench, rows)
        what = f"replay of {rows:,} events by {members} consumer{'s' if members > 1 else ''}"
        return bench.repeated(what, lambda _: consumed(site, rows, members), str)

    return bench.once(("replay", rows, members), measure)
