"""Measures a migration as users notice it: the seed's resets in seconds, and their own statements' p99 meanwhile.

27,700 of a million container repositories are reset from a full topic (seed 003 took 6 minutes), while an application
reads and writes the table at a fixed rate. The database and the application have one half of the processors, Kafka and
the consumer the other (see processors.py). Then the registry's repositories get their status (seed 004) in all three
releases while old-style rows are inserted and a long report locks the table.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import tomli_w

from infra.demo.gitlab import skipped_rows
from infra.settings.file import load_settings
from producers.source.slots import slot_name
from schemas.errors import HeadraceError
from schemas.topics import table_topic
from tests.benchmarks.applications import Application, Window, lock_waits, reading, working
from tests.benchmarks.bench import PATIENCE, SOURCE, TABLE, Bench, Site, median
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.ledger import Consumed, consumed
from tests.benchmarks.processors import Halves
from tests.benchmarks.producing import copied, producing
from tests.benchmarks.watching import PositionsWatch
from tests.consumers.registry import TABLE as REGISTRY_TABLE

_SEED_SECONDS: Final = 360.0
"""Seed 003: 3 jobs, total migration time of 6 minutes."""
_IDLE_SECONDS: Final = 10.0
_REPORT_SECONDS: Final = 5.0
_LOCK_TIMEOUT_MS: Final = 100
_LOOK_SECONDS: Final = 0.25
"""Interval between looks at the progress: each look uses the database too."""

_GENTLE_RESETS: Final = {"sub_batch_size": 50, "adaptive": False, "max_rate": 6_200}
_GENTLE_BACKFILL: Final = {"sub_batch_size": 50, "adaptive": False, "max_rate": 5_000}
"""The settings in docs/how-to/running.md for a database with users: transactions so short that nothing waits long for
one, at a rate that leaves the database mostly to others."""

_TWICE: Final = Target(at_least=0.5, ratio=True)
"""At most twice the p99 of the application alone."""

_RESETS: Final = {
    "reader": {"sql": f"SELECT name, migration_state FROM {TABLE} WHERE id = %s", "rate": 400, "keys": 0},
    "writer": {"sql": f"UPDATE {TABLE} SET updated_at = now() WHERE id = %s", "rate": 200, "keys": 0},
}
_REPOSITORIES: Final = "public.repositories"
_FILL: Final = """
    INSERT INTO repositories (top_level_namespace_id, name, path)
        SELECT i % 100, 'image-' || i, 'group-' || i FROM generate_series(1, {rows}) i;
"""
_STATUS: Final = {
    "reader": {
        "sql": f"SELECT name, path, created_at FROM {_REPOSITORIES} WHERE path = 'group-' || %s",
        "rate": 400,
        "keys": 0,
    },
    "writer": {
        "sql": f"INSERT INTO {_REPOSITORIES} (top_level_namespace_id, name, path)"
        " VALUES (1, 'new', gen_random_uuid()::text)",
        "rate": 200,
        "keys": 0,
    },
}


@dataclass(frozen=True, slots=True)
class Felt:
    """p99 in milliseconds by statement: of the application alone, and during `seconds` of work."""

    idle: dict[str, float]
    busy: dict[str, float]
    seconds: float

    def __str__(self) -> str:
        felt = ", ".join(f"{name} p99 {self.idle[name]:.1f} → {self.busy[name]:.1f} ms" for name in self.idle)
        return f"{self.seconds:.1f} s, {felt}"


@dataclass(frozen=True, slots=True)
class Releases:
    """The application's p99 in two of the releases, and headrace's longest lock wait in all three, in milliseconds."""

    expand: Felt
    backfill: Felt
    waited: float

    def __str__(self) -> str:
        return f"expand {self.expand}; backfill {self.backfill}; longest wait for a lock {self.waited:.0f} ms"


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure the resets with an application, and the three releases with one."""
    halves = Halves()
    site = _resets_site(bench)
    with halves.between(bench):
        resets = bench.repeated("resets with an application", lambda _: _resets_felt(bench, site, halves), str)
        releases = bench.repeated("releases with an application", lambda n: _releases(bench, n, halves), str)
    yield Figure(
        f"foreground, {skipped_rows(bench.rows):,} resets",
        median(each.seconds for each in resets),
        "s",
        peer=_SEED_SECONDS,
        target=Target(at_most=5),
        smaller=True,
    )
    yield from _felt("resets", resets)
    yield from _felt("expand", [each.expand for each in releases])
    yield from _felt("backfill", [each.backfill for each in releases])
    yield Figure(
        "foreground, wait for a lock",
        max(each.waited for each in releases),
        "ms",
        target=Target(at_most=_LOCK_TIMEOUT_MS),
        smaller=True,
    )


def _felt(what: str, outcomes: list[Felt]) -> Iterator[Figure]:
    for name in outcomes[0].idle:
        idle, busy = median(each.idle[name] for each in outcomes), median(each.busy[name] for each in outcomes)
        yield Figure(f"foreground, {what}, {name}'s p99", busy, "ms", peer=idle, target=_TWICE, smaller=True)


def _resets_site(bench: Bench) -> Site:
    """Return a database with the seed's share of skipped rows, and the events of all rows in a topic."""
    site = Site(bench, bench.database("foreground", bench.rows), "foreground", {"skip_resets": _GENTLE_RESETS})
    _skip(bench, site)
    copied(site)
    site.drop_slot()
    return site


def _skip(bench: Bench, site: Site) -> None:
    skipped = skipped_rows(bench.rows)
    with bench.sql(site.dsn) as connection:
        connection.execute(
            f"UPDATE {TABLE} SET migration_state = 'import_skipped', migration_skipped_reason = 2"
            f" WHERE id * {skipped} / {bench.rows} <> (id - 1) * {skipped} / {bench.rows}"
        )
        connection.execute(f"VACUUM (FREEZE, ANALYZE) {TABLE}")
        connection.execute("CHECKPOINT")


def _reset(bench: Bench, site: Site) -> Consumed:
    outcome = consumed(site, bench.rows, every=_LOOK_SECONDS)
    if outcome.applied != skipped_rows(bench.rows):
        raise HeadraceError(f"{outcome.applied} rows were reset, where {skipped_rows(bench.rows)} should have been")
    return outcome


def _resets_felt(bench: Bench, site: Site, halves: Halves) -> Felt:
    statements = {name: {**each, "keys": bench.rows} for name, each in _RESETS.items()}
    with working(site, statements) as application:
        halves.for_the_database(application.pid)
        idle = application.window(_IDLE_SECONDS)
        outcome = _reset(bench, site)
        busy = Window(outcome.ended - outcome.events / outcome.rate, outcome.ended)
        felt = _compared(application, idle, busy)
    _skip(bench, site)
    return felt


def _compared(application: Application, idle: Window, busy: Window) -> Felt:
    before, during = ({name: application.p99(name, each) for name in ("reader", "writer")} for each in (idle, busy))
    return Felt(before, during, busy.end - busy.start)


class _RegistrySite(Site):
    """Like Site, for a database whose only table is the registry's repositories."""

    def __init__(self, bench: Bench, dsn: str, prefix: str) -> None:
        super().__init__(bench, dsn, prefix)
        document = {
            "prefix": prefix,
            "kafka": {"bootstrap_servers": bench.stack.endpoints.bootstrap_servers},
            "databases": {SOURCE: {"dsn": dsn, "gitlab_schemas": ["registry"], "tables": [_REPOSITORIES]}},
            "migrations": {"status_backfills": {"lock_timeout_ms": _LOCK_TIMEOUT_MS, **_GENTLE_BACKFILL}},
        }
        self.file = bench.kept_private(f"{prefix}.toml", tomli_w.dumps(document))
        self.settings = load_settings(self.file)
        self.topics = [table_topic(prefix, "registry", SOURCE, *_REPOSITORIES.split("."))]
        self.slot = slot_name(self.settings, SOURCE, self.settings.database(SOURCE))


def _releases(bench: Bench, number: int, halves: Halves) -> Releases:
    """Run the three releases with an application; each has to wait for a report that locks the table for a while."""
    rows = max(10_000, bench.rows // 4)
    dsn = bench.stack.postgres.create_database(f"bench_registry_{number}")
    with bench.sql(dsn) as connection:
        connection.execute(REGISTRY_TABLE)
        connection.execute(_FILL.format(rows=rows))
        connection.execute("VACUUM (FREEZE, ANALYZE) repositories")
        connection.execute("CHECKPOINT")
    site = _RegistrySite(bench, dsn, f"registry{number}")
    statements = {**_STATUS, "reader": {**_STATUS["reader"], "keys": rows}}
    with PositionsWatch(site) as watch, producing(site) as producer, lock_waits(dsn, "headrace schema%") as waits:
        watch.until_copied(producer)
        with working(site, statements) as application:
            halves.for_the_database(application.pid)
            idle = application.window(_IDLE_SECONDS)
            began = time.monotonic()
            _after_a_report(site, "expand")
            expand = _compared(application, idle, Window(began, time.monotonic()))
            consumer = bench.start(f"consume-{site.prefix}", site.command("consume", "status_backfills"))
            first = 0.0
            with bench.sql(dsn) as connection:
                for _ in bench.watched("the backfill", producer, consumer, every=_LOOK_SECONDS):
                    applied = _applied(connection)
                    first = first or (time.monotonic() if applied else 0.0)
                    if applied >= rows:  # all existing rows; the application keeps inserting such rows
                        break
            backfill = _compared(application, idle, Window(first, time.monotonic()))
        _run(site, "backfill")
        _after_a_report(site, "contract")
        consumer.stop(signal.SIGTERM, 20.0)
    site.drop()
    bench.stack.postgres.drop_database(f"bench_registry_{number}")
    return Releases(expand, backfill, waits.longest)


def _applied(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(
        "SELECT coalesce(sum(applied), 0) FROM headrace.progress WHERE migration = 'status_backfills'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def _after_a_report(site: Site, release: str) -> None:
    """Start a release while a report locks the table; the release finishes once the report has."""
    words = site.command("schema", release, "status_backfills")
    with reading(site.dsn, _REPOSITORIES):
        process = site.bench.start(f"{release}-{site.prefix}", words)
        time.sleep(_REPORT_SECONDS)
        if process.poll() is not None:
            raise HeadraceError(f"{release} did not wait for the report: {process.last_lines()}", remedy="")
    if process.wait(PATIENCE) != 0:
        raise HeadraceError(f"{release} failed: {process.last_lines()}", remedy="")


def _run(site: Site, release: str) -> None:
    log = site.bench.place / f"{release}-{site.prefix}.log"
    words = site.command("schema", release, "status_backfills")
    site.bench.stack.keeper.run(words, log=log, cwd=site.bench.place, timeout=PATIENCE)
