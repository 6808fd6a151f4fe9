"""Replays of a topic in which no row needs a change, measured once for all benchmarks."""

from __future__ import annotations

from tests.benchmarks.bench import Bench
from tests.benchmarks.ledger import Consumed, consumed
from tests.benchmarks.snapshots import snapshot_site


def replay_runs(bench: Bench, rows: int) -> list[Consumed]:
    """Return all runs of a consumer over the topic of a snapshot of `rows` rows."""

    def measure() -> list[Consumed]:
        site = snapshot_site(bench, rows)
        return bench.repeated(f"replay of {rows:,} events", lambda _: consumed(site, rows), str)

    return bench.once(("replay", rows), measure)
