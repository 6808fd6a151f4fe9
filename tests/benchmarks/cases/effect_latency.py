"""From an application's commit to its effect, at 300 and 1,000 changes a second: producer, Kafka and one consumer.

The commit counts from the moment the application has its answer; the effect from a trigger on the migration's own
write, a moment before that commits. Both use the same machine's clock.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import psycopg

from schemas.errors import HeadraceError
from tests.benchmarks.bench import TABLE, Bench, Site, median
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.producing import producing
from tests.benchmarks.watching import PositionsWatch

_TARGETS: Final[Mapping[int, Mapping[str, float]]] = {300: {"p50": 20, "p99": 200}, 1_000: {"p50": 50, "p99": 200}}
"""Changes per second → what of the latency → at most so many milliseconds."""
_WARM_SECONDS: Final = 5.0
_SECONDS: Final = 20.0

_EFFECTS: Final = f"""
    CREATE TABLE public.effects (id bigint, at timestamptz);
    CREATE FUNCTION public.note_effect() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.effects VALUES (NEW.id, clock_timestamp());
            RETURN NULL;
        END $$;
    CREATE TRIGGER note_effect AFTER UPDATE ON {TABLE} FOR EACH ROW
        WHEN (OLD.migration_state = 'import_skipped' AND NEW.migration_state = 'default')
        EXECUTE FUNCTION public.note_effect();
"""
_WANT: Final = f"UPDATE {TABLE} SET migration_state = 'import_skipped', migration_skipped_reason = 2 WHERE id = %s"


@dataclass(frozen=True, slots=True)
class Latency:
    """Latencies of all changes after the warm-up, in milliseconds."""

    p50: float
    p99: float
    changes: int

    def __str__(self) -> str:
        return f"p50 {self.p50:.1f} ms, p99 {self.p99:.1f} ms, of {self.changes:,} changes"


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure the latency."""
    rows = 50_000
    site = Site(bench, bench.database("effects", rows), "effects")
    with bench.sql(site.dsn) as connection:
        connection.execute(_EFFECTS)
    ids = itertools.cycle(range(1, rows + 1))
    for rate, targets in _TARGETS.items():
        what = f"commit to effect at {rate:,}/s"
        found = bench.repeated(what, lambda _, rate=rate: _measured(bench, site, ids, rate), str)  # type: ignore[misc]
        for name, target in targets.items():
            value = median(getattr(each, name) for each in found)
            yield Figure(f"{what}, {name}", value, "ms", target=Target(at_most=target), smaller=True)
    site.drop()


def _measured(bench: Bench, site: Site, ids: Iterator[int], rate: int) -> Latency:
    committed: list[tuple[int, float]] = []
    with bench.sql(site.dsn) as connection:
        connection.execute("TRUNCATE public.effects")
    with PositionsWatch(site) as watch, producing(site) as producer:
        watch.until_copied(producer)
        consumer = bench.start("consume-effects", site.command("consume", "skip_resets"))
        writer = threading.Thread(target=_write, args=(site.dsn, ids, committed, rate))
        writer.start()
        with bench.sql(site.dsn) as connection:
            for _ in bench.watched("the effects", producer, consumer, every=0.25):
                if not writer.is_alive() and _count(connection) >= len(committed):
                    break
            writer.join()
            effects = dict(
                connection.execute("SELECT id, extract(epoch FROM at)::float8 FROM public.effects").fetchall()
            )
        consumer.stop(signal.SIGTERM, 20.0)
    begun = committed[0][1]
    waits = sorted((effects[key] - at) * 1000 for key, at in committed if at > begun + _WARM_SECONDS)
    if not waits:
        raise HeadraceError("all changes were written within the warm-up", remedy="this machine is too busy")
    return Latency(waits[len(waits) // 2], waits[len(waits) * 99 // 100], len(waits))


def _write(dsn: str, ids: Iterator[int], committed: list[tuple[int, float]], rate: int) -> None:
    """Write at the given rate, one row a transaction; a late transaction does not delay the due times of later ones."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        begin = time.monotonic()
        for number in range(int(rate * (_WARM_SECONDS + _SECONDS))):
            wait = begin + number / rate - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            key = next(ids)
            connection.execute(_WANT, (key,))
            committed.append((key, time.time()))


def _count(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT count(*) FROM public.effects").fetchone()
    assert row is not None
    return int(row[0])
