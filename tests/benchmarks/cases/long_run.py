"""A long run: snapshot, replay and `verify --rows` of a table that is far larger than anything kept in memory.

`make bench ONLY=long_run ROWS=50000000`. The rate of the last tenth is compared with that of the first, the memory at
the end with that after the first tenth. The largest record of the snapshot's state is shown.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final

from consumers.compare.marks import MARK
from infra.stack.processes.keeper import Guarded
from infra.state.positions import SnapshotState
from schemas.errors import HeadraceError
from tests.benchmarks.bench import SOURCE, TABLE, Bench, Site
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.ledger import MIGRATION, PROGRESS
from tests.benchmarks.machine import peak_megabytes
from tests.benchmarks.watching import PositionsWatch

_AT_ONCE: Final = 1_000_000
_EVERY_SECONDS: Final = 0.2
_STOP_SECONDS: Final = 60.0
_INSERT: Final = """
INSERT INTO container_repositories (id, project_id, name, created_at, updated_at, migration_plan)
SELECT i, 1, 'image-' || i, timestamptz '2022-01-01 00:00Z' + i * interval '1 second',
       timestamptz '2022-06-01 00:00Z' + i * interval '1 second', 'free'
  FROM generate_series(%s::bigint, %s::bigint) i
"""


@dataclass
class _Course:
    """How far a process was at each look: seconds, rows or events done, and its peak memory in MB until then."""

    rows: int
    looks: list[tuple[float, int, float]] = field(default_factory=list)

    def look(self, done: int, process: Guarded) -> None:
        self.looks.append((time.monotonic(), done, peak_megabytes(process.pid)))

    def _rate(self, begin: float, end: float) -> float | None:
        """Return the rate between two shares of the rows; None if it was looked at too seldom in so few rows."""
        inside = [(at, done) for at, done, _ in self.looks if begin * self.rows <= done <= end * self.rows]
        if len(inside) < 2 or inside[-1][1] == inside[0][1]:
            return None
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])

    def figures(self, what: str) -> Iterator[Figure]:
        """Yield the rate of all, those of the last tenth and the first, and the memory at the end and after a tenth."""
        all_of_it, first, last = self._rate(0.0, 1.0), self._rate(0.0, 0.1), self._rate(0.9, 1.0)
        steady = Target(at_least=0.9, ratio=True)
        if all_of_it is not None:
            yield Figure(f"{what}, rate", all_of_it, "/s")
        if first is not None and last is not None:
            yield Figure(f"{what}, rate of the last tenth", last, "/s", peer=first, target=steady)
        early = [peak for _, done, peak in self.looks if done >= self.rows / 10]
        if early:
            yield Figure(f"{what}, memory", early[-1], "MB", peer=early[0], target=steady, smaller=True)


def figures(bench: Bench) -> Iterator[Figure]:
    """Copy the table, replay its topic without a change, and compare both."""
    dsn = bench.once(("long run", bench.rows), lambda: _filled(bench))
    with bench.sql(dsn) as connection:
        row = connection.execute(f"SELECT pg_relation_size('{TABLE}')").fetchone()
        assert row is not None
        yield Figure("row in the table", row[0] / bench.rows, "bytes")
    site = Site(bench, dsn, "long", spill_directory=bench.place / "spilled")
    try:
        producer = bench.start("produce-long", site.command("produce", SOURCE))
        try:
            yield from _copied(site, producer)
            yield from _replayed(site)
            yield from _verified(site)
        finally:
            producer.stop(signal.SIGTERM, _STOP_SECONDS)
    finally:
        site.drop()


def _filled(bench: Bench) -> str:
    dsn = bench.stack.postgres.create_database(f"bench_long_{bench.rows}")
    with bench.sql(dsn) as connection:
        connection.execute(files("infra.demo").joinpath("gitlab.sql").read_text(encoding="utf-8").encode())
        connection.execute("DROP SCHEMA proof CASCADE; ALTER TABLE container_repositories DROP CONSTRAINT"
                           " container_repositories_project_id_fkey")  # fmt: skip
        for first in range(1, bench.rows + 1, _AT_ONCE):
            connection.execute(_INSERT, (first, min(first + _AT_ONCE - 1, bench.rows)))
        connection.execute("VACUUM (FREEZE, ANALYZE) container_repositories")
        connection.execute("CHECKPOINT")
    bench.say(f"{bench.rows:,} rows inserted")
    return dsn


def _copied(site: Site, producer: Guarded) -> Iterator[Figure]:
    course = _Course(site.bench.rows)
    sizes: list[int] = []

    def done(record: object) -> bool:
        if not isinstance(record, SnapshotState):
            return False
        course.look(record.rows, producer)
        sizes.append(len(record.model_dump_json()))
        return record.done

    with PositionsWatch(site) as watch:
        watch.until(done, producer)
    site.bench.say("copied")
    yield from course.figures("long run: snapshot")
    yield Figure("long run: largest state of the snapshot", max(sizes), "bytes", target=Target(at_most=10_000))


def _replayed(site: Site) -> Iterator[Figure]:
    bench, course = site.bench, _Course(site.bench.rows)
    consumer = bench.start("consume-long", site.command("consume", MIGRATION))
    try:
        with bench.sql(site.dsn) as connection:
            for _ in bench.watched("the consumer", consumer, every=_EVERY_SECONDS):
                if connection.execute("SELECT to_regclass('headrace.progress')").fetchone() == (None,):
                    continue
                row = connection.execute(PROGRESS, (MIGRATION,)).fetchone()
                assert row is not None
                course.look(row[0], consumer)
                if row[0] >= bench.rows:
                    break
    finally:
        consumer.stop(signal.SIGTERM, _STOP_SECONDS)
    bench.say("replayed")
    yield from course.figures("long run: replay")


def _verified(site: Site) -> Iterator[Figure]:
    bench, course = site.bench, _Course(site.bench.rows)
    process = bench.start("verify-long", site.command("verify", TABLE, "--rows", "--json"))
    began = time.monotonic()
    for _ in bench.watched("verify", process, every=_EVERY_SECONDS):
        course.look(_rows_marked(bench.place / "spilled"), process)
        if process.poll() is not None:
            break
    seconds = time.monotonic() - began
    lines = process.log.read_text(encoding="utf-8").splitlines()
    (found,) = json.loads(next(line for line in lines if line.startswith("[")))
    if process.poll() or any(found[kind] for kind in ("missing", "extra", "differing")):
        raise HeadraceError(f"verify found {found}", remedy="")
    bench.say("compared")
    # Only looks that found more than every earlier one: at the end it removes its files.
    most = accumulate((done for _, done, _ in course.looks), max)
    course.looks = [look for look, (before, now) in zip(course.looks[1:], pairwise(most), strict=True) if now > before]
    yield Figure("long run: verify, from process start", bench.rows / seconds, "rows/s")
    yield from course.figures("long run: verify, rows of the table")


def _rows_marked(place: Path) -> int:
    """Return how many rows of the table `verify` has read and written as marks, by the size of their files."""
    with contextlib.suppress(FileNotFoundError):  # it removes them at the end
        return sum(path.stat().st_size for path in place.rglob("table-*")) // MARK.size
    return 0
