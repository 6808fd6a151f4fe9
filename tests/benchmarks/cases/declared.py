"""A migration that the settings declare compared with the same one as code: a text column of a table with a uuid key.

Both read the same topic, in turn, and fill half of the rows, which are emptied in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from schemas.errors import HeadraceError
from tests.benchmarks.bench import Bench, Site, median
from tests.benchmarks.cases.resets import UNIT
from tests.benchmarks.figures import Figure, Target
from tests.benchmarks.ledger import Consumed, consumed
from tests.benchmarks.producing import copied

_TABLE: Final = "public.people"
_DECLARED: Final = "nicks"
_CODED: Final = "coded_nicks"
_SECTION: Final = {
    "table": _TABLE,
    "where": "nick IS NULL",
    "prefilter": "nick IS NULL",
    "set": {"nick": "lower(name)"},
}
_CODE: Final = '''
"""Sets nick where there is none, as an author would write it."""

from headrace import UNCHANGED, Change, Migration, Skip


class CodedNicks(Migration):
    """Set nick of people without one."""

    name = "coded_nicks"
    gitlab_schema = "gitlab_main"
    tables = ("public.people",)
    columns = ("id", "nick")

    def decide(self, event):
        row = event.after
        if row is None:
            return Skip("deleted")
        if row["nick"] is not None and row["nick"] is not UNCHANGED:
            return Skip("has one")
        return Change(row["id"])

    def apply(self, cursor, changes):
        keys = sorted({change.key for change in changes})
        cursor.execute(
            "UPDATE public.people SET nick = lower(name) WHERE id = ANY(%s::uuid[]) AND nick IS NULL", (keys,)
        )
        return cursor.rowcount

    def remaining(self, cursor):
        return cursor.execute("SELECT count(*) FROM public.people WHERE nick IS NULL").fetchone()[0]
'''
_FILL: Final = """
    INSERT INTO public.people
    SELECT md5(n::text)::uuid, 'Name ' || n, CASE WHEN n % 2 = 0 THEN 'own' END FROM generate_series(1, {}) n
"""


def figures(bench: Bench) -> Iterator[Figure]:
    """Measure both."""
    site = _site(bench)
    copied(site)
    site.drop_slot()
    ours = bench.repeated("backfill as declared", lambda _: _migrated(bench, site, _DECLARED), str)
    coded = bench.repeated("backfill as coded", lambda _: _migrated(bench, site, _CODED), str)
    yield Figure("declared", _rate(ours), UNIT, peer=_rate(coded), target=Target(at_least=0.9, ratio=True))
    yield Figure("declared, memory", median(run.peak for run in ours), "MB", target=Target(at_most=200), smaller=True)


def _site(bench: Bench) -> Site:
    dsn = bench.stack.postgres.create_database("bench_people")
    with bench.sql(dsn) as connection:
        connection.execute(f"CREATE TABLE {_TABLE} (id uuid PRIMARY KEY, name text NOT NULL, nick text)")
        connection.execute(_FILL.format(bench.rows))
        connection.execute(f"VACUUM (FREEZE, ANALYZE) {_TABLE}")
    plugins = bench.place / "migrations"
    plugins.mkdir()
    (plugins / "coded_nicks.py").write_text(_CODE, encoding="utf-8")
    return Site(bench, dsn, "declared", {_DECLARED: {"declare": _SECTION}}, (_TABLE,), plugin_paths=(plugins,))


def _rate(runs: list[Consumed]) -> float:
    """Return the rows that were filled per second; the other events are read for nothing."""
    return median(run.rate * run.applied / run.events for run in runs)


def _migrated(bench: Bench, site: Site, migration: str) -> Consumed:
    outcome = consumed(site, bench.rows, migration=migration)
    if outcome.applied != bench.rows // 2:
        raise HeadraceError(f"{migration} filled {outcome.applied} rows, where {bench.rows // 2} should have been")
    with bench.sql(site.dsn) as connection:
        connection.execute(f"UPDATE {_TABLE} SET nick = NULL WHERE nick <> 'own'")
        connection.execute(f"VACUUM (FREEZE, ANALYZE) {_TABLE}")
        connection.execute("CHECKPOINT")
    return outcome
